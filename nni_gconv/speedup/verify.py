"""Masked and small model must agree; where they do not, the first layer that parts is named."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from nni_gconv.errors import SpeedupError
from nni_gconv.speedup.channels import ChannelMap, varying
from nni_gconv.speedup.trace import Graph, as_inputs, trace

__all__ = ["masked_copy", "uneven_part", "verify_equal"]

#: Largest relative difference by dtype, as the contract promises.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def masked_copy(
    model: nn.Module, kept: Mapping[str, Tensor], aliases: Mapping[str, tuple[str, ...]]
) -> nn.Module:
    """Return a copy of a model with its masked parameters set to zero."""
    copied = copy.deepcopy(model)
    named = dict(copied.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in kept.items():
            tensor = named[aliases[name][0]]
            tensor.mul_(mask.to(tensor.device))
    return copied


def verify_equal(
    masked: nn.Module,
    small: nn.Module,
    dummy_input: Any,
    *,
    graph: Graph,
    channels: ChannelMap,
    removed: np.ndarray,
    seed: int = 0,
) -> float:
    """Run both models on the same random inputs and compare every output.

    Parameters
    ----------
    masked, small : nn.Module
        Both are moved to eval mode and, where possible, float64: pass copies.
    dummy_input : Tensor, tuple or dict
        Gives shapes and dtypes; floating-point inputs are replaced by random numbers.
    graph, channels, removed
        What the small model was made from; used to name the layer where the two part.
    seed : int
        Seed of the random inputs.

    Returns
    -------
    float
        Largest difference relative to the largest output.

    Raises
    ------
    SpeedupError
        The models differ by more than 1e-9 (float64) or 1e-4 (models that only run in float32).
    """
    error: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        masked, small = masked.to(dtype).eval(), small.to(dtype).eval()
        inputs = _random_inputs(dummy_input, dtype, seed)
        try:
            expected = _outputs(masked, inputs)
        except RuntimeError as failed:  # a forward that creates float32 tensors of its own
            error = failed
            continue
        got = _outputs(small, inputs)
        worst = max((_difference(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)
        if not worst <= TOLERANCE[dtype]:
            layer = _first_divergence(
                masked, small, inputs, graph, channels, removed, TOLERANCE[dtype]
            )
            raise SpeedupError(
                f"the small model differs from the masked one by {worst:.1e} of its largest "
                f"output; they part at {layer}"
            )
        return worst
    raise SpeedupError(f"the masked model does not run on random inputs: {error}")


def uneven_part(
    small: nn.Module, dummy_input: Any, graph: Graph, channels: ChannelMap, removed: np.ndarray
) -> Node | None:
    """Find an operator that deals the small model's channels out otherwise than the dense one's.

    ``x.chunk(2, 1)`` halves what there is; ``x.split(32, 1)`` counts on 64 channels and would give
    a smaller model 32 and the rest. The small model is traced and the parts are compared.

    Returns
    -------
    torch.fx.Node or None
        The first such operator of the dense graph.
    """
    # Others may come and go with the widths: copies that a single channel does not need, say.
    kinds = {n.target for n in channels.halvings}
    dense = [n for n in graph.nodes if n.target in kinds]
    now = [n for n in trace(small, dummy_input).nodes if n.target in kinds]
    if len(dense) != len(now):
        return channels.halvings[0]
    other = dict(zip(dense, now, strict=True))
    for node in channels.halvings:
        parts = zip(channels.values[node], node.meta["val"], other[node].meta["val"], strict=False)
        for fields, before, after in parts:
            shape = list(before.shape)
            for field in fields:
                if len(along := varying(field)) == 1:
                    shape[along[0]] = int((~removed[channels.of(field.reshape(-1))]).sum())
            if list(after.shape) != shape:
                return node
        if len(node.meta["val"]) != len(other[node].meta["val"]):
            return node
    return None


def _random_inputs(dummy_input: Any, dtype: torch.dtype, seed: int) -> tuple[tuple, dict]:
    generator = torch.Generator().manual_seed(seed)

    def randomise(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator, dtype=dtype).to(value.device)
        return value

    args, kwargs = as_inputs(dummy_input)
    return pytree.tree_map(randomise, args), pytree.tree_map(randomise, kwargs)


def _outputs(model: nn.Module, inputs: tuple[tuple, dict]) -> list[Tensor]:
    with torch.no_grad():
        result = model(*inputs[0], **inputs[1])
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _difference(expected: Tensor, got: Tensor) -> float:
    """Largest difference relative to the largest value; infinite when shapes differ."""
    if expected.shape != got.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else float("inf")
    if not bool(expected.isfinite().all()):
        raise SpeedupError("the masked model's own output is not finite on random inputs")
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    worst = float((expected - got).abs().max()) if expected.numel() else 0.0
    return worst / scale if scale > 0 else worst


def _first_divergence(
    masked: nn.Module,
    small: nn.Module,
    inputs: tuple[tuple, dict],
    graph: Graph,
    channels: ChannelMap,
    removed: np.ndarray,
    tolerance: float,
) -> str:
    """Name the first module, in the order they run, whose kept channels differ."""
    last = {graph.owner(node): node for node in graph.nodes if node.op == "call_function"}
    reference = _record(masked, inputs)
    for name, got in _record(small, inputs).items():
        node, expected = last.get(name), reference.get(name)
        if node is None or expected is None:
            continue
        fields = channels.values.get(node, ())
        for field in fields if isinstance(fields, tuple) else ():
            along = varying(field)
            if len(along) == 1 and expected.shape[along[0]] == field.numel():
                stays = np.flatnonzero(~removed[channels.of(field.reshape(-1))])
                expected = expected.index_select(
                    along[0], torch.from_numpy(stays).to(expected.device)
                )
        if not _difference(expected, got) <= tolerance:
            return f"{name} ({type(graph.modules[name]).__name__})"
    return "the output (no single layer differs)"


def _record(model: nn.Module, inputs: tuple[tuple, dict]) -> dict[str, Tensor]:
    """Outputs of the innermost modules, in the order they ran first."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if any(True for _ in module.children()):
            continue

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor):
                seen.setdefault(name, output.detach().clone())

        handles.append(module.register_forward_hook(keep))
    try:
        _outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen
