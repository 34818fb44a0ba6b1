"""What the tests of the speedup share: random weights, random masks, and a judge of their own.

The judge multiplies parameters with masks and compares outputs in float64. It uses nothing of
nni_gconv.speedup.verify, which is one of the things under test.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from nni_gconv import ModelSpeedup
from nni_gconv.graph import Coupling, find_norm, find_standard

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def randomise(model, seed=0):
    """Give a model float64 weights, norms and statistics that no bug can hide behind; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            # Widths of the layers before and behind differ; keep numbers near one all the way.
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                    scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 1.0
                    if isinstance(module, NORMS):
                        tensor.copy_(noise + 0.5 if name == "weight" else noise - 0.4)
                    else:
                        tensor.copy_((noise - 0.5) * 3 * scale)
            if (
                isinstance(module, nn.modules.batchnorm._NormBase)
                and module.running_var is not None
            ):
                size = module.running_var.shape
                module.running_mean.copy_(torch.rand(size, generator=generator) - 0.5)
                module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
    return model


def randn(*shape, seed=0):
    """Return float64 random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masked(model, masks):
    """Return a copy whose parameters are multiplied with their masks."""
    copied = copy.deepcopy(model)
    modules = dict(copied.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name, targets in masks.items():
            for target, mask in targets.items():
                if mask is not None:
                    getattr(modules[name], target).mul_(mask)
    return copied


def outputs_of(model, inputs):
    """Return all output tensors; a dict gives keywords, a tuple arguments."""
    inputs = copy.deepcopy(inputs)
    with torch.no_grad():
        if isinstance(inputs, dict):
            result = model(**inputs)
        else:
            result = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


def assert_same_outputs(expected, got, tolerance=1e-9):
    """Compare outputs relative to the largest number of each."""
    assert [x.shape for x in expected] == [x.shape for x in got]
    for first, second in zip(expected, got, strict=True):
        assert bool(first.isfinite().all())
        scale = float(first.abs().max()) or 1.0
        assert float((first - second).abs().max()) <= tolerance * scale


def size(model):
    """Count parameters."""
    return sum(p.numel() for p in model.parameters())


def flags(model):
    """Return what a speedup has to leave alone; norms over channels become one of ours."""
    return (
        {
            n: (
                None if find_norm(m) or find_standard(m) else type(m),
                m.training,
                len(m._forward_hooks),
            )
            for n, m in model.named_modules()
        },
        {n: p.requires_grad for n, p in model.named_parameters() if not n.endswith("bias")},
    )


def shrink(model, dummy, masks, inputs=None, *, smaller=True, **options):
    """Speed a model up and judge the result; return the ModelSpeedup."""
    inputs = dummy if inputs is None else inputs
    expected = outputs_of(masked(model, masks), inputs)
    before, dense = flags(model), size(model)
    options = {"verify": False, **options}
    speedup = ModelSpeedup(model, dummy, masks, **options)
    small = speedup.speedup_model()
    assert small is model, "the model passed in is the one returned"
    assert flags(small) == before
    assert_same_outputs(expected, outputs_of(small, inputs))
    assert size(small) < dense if smaller else size(small) == dense
    return speedup


def zeroing_masks(model, dummy, seed=0, share=0.4):
    """Return masks that zero random channels of every coupled set that can be pruned."""
    rng = np.random.default_rng(seed)
    coupling = Coupling.trace(model, dummy)
    removed = coupling.empty()
    for coupled in coupling.sets:
        if coupled.reason is None:
            removed[coupled.classes[random_channels(coupled, rng, share)]] = True
    return coupling.masks(removed)


def random_channels(coupled, rng, share):
    """Draw channels of a set, as many from each of its parts, and never all."""
    parts = np.zeros(coupled.size, int) if coupled.parts is None else coupled.parts
    smallest = np.bincount(parts).min()
    count = min(smallest - 1, max(1, round(share * smallest)))
    drawn = [
        rng.choice(np.flatnonzero(parts == part), count, replace=False) for part in np.unique(parts)
    ]
    return np.concatenate(drawn)


def filter_masks(model, seed=0, share=0.4):
    """Return masks of random filters, layer by layer, that know of no coupling."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and rng.random() < 0.9:
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            dim = 1 if transposed else 0
            gone = torch.from_numpy(rng.random(module.weight.shape[dim]) < share)
            view = [1] * module.weight.dim()
            view[dim] = -1
            masks[name] = {"weight": (~gone).double().view(view).expand_as(module.weight).clone()}
    return masks


def rows_off(model, name, rows, *others):
    """Return masks that zero `rows` of a layer, its bias, and whole further modules' entries."""
    masks = {}
    for module_name in (name, *others):
        module = model.get_submodule(module_name)
        for target in ("weight", "bias"):
            tensor = getattr(module, target, None)
            if tensor is not None:
                mask = torch.ones_like(tensor)
                mask[rows] = 0
                masks.setdefault(module_name, {})[target] = mask
    return masks


def line_of(cls, text):
    """Return file:line of a line in the source of a class, as a message names it."""
    lines, first = inspect.getsourcelines(cls)
    number = next(i for i, line in enumerate(lines) if text in line)
    return f"{Path(inspect.getsourcefile(cls)).name}:{first + number}"
