"""Small over dense time, both in forms for inference that need no search."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nni_gconv.errors import TraceError
from nni_gconv.groupconv import unwrapped
from nni_gconv.groupconv.forms import Form, find_units, forms_of
from nni_gconv.inference.norms import foldable_norms
from nni_gconv.inference.plan import FormPlan, LayerForm, apply_forms
from nni_gconv.profiling import compare_latency


def quick_ratio(dense: nn.Module, small: nn.Module, dummy_input: Any) -> float:
    """Return the time of a small network over the dense one's, each in the quicker of two forms.

    Both are timed in turn with norms folded, contiguous as torch has it, and channels last with
    packed weights: what :func:`nni_gconv.optimize` mostly ends at for layers without groups. The
    batch is that of `dummy_input`, on one CPU thread or on the GPU the models are on.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> quick_ratio(net, net, torch.zeros(1, 3, 8, 8)) > 0
    True
    """
    batch = next((len(t) for t in pytree.tree_leaves(dummy_input) if isinstance(t, Tensor)), 1)
    models = {
        f"{name}, {form}": made
        for name, model in (("dense", dense), ("small", small))
        for form, made in _forms(model, dummy_input).items()
    }
    found = compare_latency(models, dummy_input, batch_size=batch).ratios
    # Each ratio is to the first of the dense network's forms, so the two share their rounds.
    best = {
        name: min(ratio for key, ratio in found.items() if key.startswith(name))
        for name in ("dense", "small")
    }
    return best["small"] / best["dense"]


def _forms(model: nn.Module, dummy_input: Any) -> dict[str, nn.Module]:
    try:
        folded = FormPlan(folded=foldable_norms(model, dummy_input))
    except TraceError:
        folded = FormPlan()
    contiguous = apply_forms(model, folded)
    layers = {}
    for unit in find_units(contiguous, dummy_input):
        layer: Any = unwrapped(unit.module)
        packed = Form("packed", layer.groups)
        known = packed if packed in forms_of(unit.module) else Form("plain", layer.groups)
        layers[unit.name] = LayerForm(known, True)
    last = FormPlan(layers, folded.folded, channels_last=True)
    return {"contiguous": contiguous, "channels last": apply_forms(model, last)}
