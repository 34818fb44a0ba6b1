"""Masked and small model must agree; where they do not, the first layer that parts is named.

Beside the outputs it is seen whether the small model cuts its channels into parts where the dense
one does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from nni_gconv.errors import SpeedupError
from nni_gconv.graph import ChannelMap, ChannelOrder, Graph, as_inputs, trace, varying, watch_sizes
from nni_gconv.modes import evaluating, forward_of_training

Shapes = tuple[tuple[int, ...], ...]

#: Largest relative difference by dtype, as the contract promises.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def precise_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose floating-point tensors are float64."""
    made: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            copied = tensor.detach().to(torch.float64, copy=True)
            if isinstance(tensor, nn.Parameter):
                copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
            made[id(tensor)] = copied
    # What the memo holds counts as copied: no copy in the old type is made on the way.
    return copy.deepcopy(model, made)


def mask_parameters(
    model: nn.Module, kept: Mapping[str, Tensor], aliases: Mapping[str, tuple[str, ...]]
) -> None:
    """Give a model masked parameters; a copy that shares the old ones keeps them unmasked."""
    for name, mask in kept.items():
        old = model.get_parameter(name)
        masked = old.detach().masked_fill(~mask.to(old.device), 0)
        made = nn.Parameter(masked, requires_grad=old.requires_grad)
        for alias in aliases[name]:
            path, _, attribute = alias.rpartition(".")
            setattr(model.get_submodule(path), attribute, made)


def verify_equal(
    masked: nn.Module,
    small: nn.Module,
    dummy_input: Any,
    *,
    graph: Graph,
    channels: ChannelMap,
    order: ChannelOrder,
    seed: int = 0,
) -> float:
    """Run both models on the same random inputs and compare every output.

    Parameters
    ----------
    masked, small : nn.Module
        Both are moved to eval mode and, where possible, float64: pass copies.
    dummy_input : Tensor, tuple or dict
        Gives shapes and dtypes; floating-point inputs are replaced by random numbers. Of a batch
        two samples are run where the model takes them.
    graph, channels, order
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
    for dtype, given in _attempts(dummy_input):
        masked, small = masked.to(dtype).eval(), small.to(dtype).eval()
        inputs = _randomised(given, dtype, seed)
        try:
            expected, got = _outputs(masked, inputs), _outputs(small, inputs)
        except (RuntimeError, ValueError, IndexError) as failed:
            error = failed
            continue
        worst = max((_difference(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)
        if not worst <= TOLERANCE[dtype]:
            layer = _first_divergence(
                masked, small, inputs, graph, channels, order, TOLERANCE[dtype]
            )
            raise SpeedupError(
                f"the small model differs from the masked one by {worst:.1e} of its largest "
                f"output; they part at {layer}"
            )
        return worst
    raise SpeedupError(f"the models do not run on random inputs: {error}")


def _attempts(dummy_input: Any) -> list[tuple[torch.dtype, Any]]:
    """List precisions and inputs to try: few samples, all of them, then the model's own float32.

    A forward may hold its batch, or create float32 tensors of its own.
    """
    given = as_inputs(dummy_input)
    few = pytree.tree_map(_first_two, given)
    lengths = [
        [len(x) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
        for inputs in (given, few)
    ]
    inputs = [given] if lengths[0] == lengths[1] else [few, given]
    return [*((torch.float64, x) for x in inputs), (torch.float32, given)]


def _first_two(value: Any) -> Any:
    return value[:2] if isinstance(value, Tensor) and value.dim() > 1 else value


def _randomised(inputs: Any, dtype: torch.dtype, seed: int) -> tuple[tuple, dict]:
    generator = torch.Generator().manual_seed(seed)

    def randomise(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator, dtype=dtype).to(value.device)
        return value

    return pytree.tree_map(randomise, inputs)


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
    order: ChannelOrder,
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
                stays = torch.from_numpy(order.positions(channels.of(field.reshape(-1))))
                expected = expected.index_select(along[0], stays.to(expected.device))
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


# -- equal parts -----------------------------------------------------------------------------------


def uneven_part(
    small: nn.Module, dummy_input: Any, graph: Graph, channels: ChannelMap, removed: np.ndarray
) -> Node | None:
    """Find an operator that deals the small model's channels out otherwise than the dense one's.

    ``x.chunk(2, 1)`` halves what there is; ``x.split(32, 1)`` counts on 64 channels and would give
    a smaller model 32 and the rest. The small model is run and the shapes are compared.

    Parameters
    ----------
    small : nn.Module
        The model after the cut.
    dummy_input : Tensor, tuple or dict
        What the dense model was traced with.
    graph, channels
        Of the dense model.
    removed : ndarray of bool, shape (classes,)
        Classes that went.

    Returns
    -------
    torch.fx.Node or None
        The first such operator of the dense graph.
    """
    now = _shapes_of_run(small, dummy_input, graph, channels)
    if now is None:
        now = _shapes_of_trace(small, dummy_input, graph, channels)
    if now is None:
        return channels.halvings[0]
    for node in channels.halvings:
        if tuple(_expected(node, channels, removed)) != now[node]:
            return node
    return None


def _expected(node: Node, channels: ChannelMap, removed: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Shapes of an operator's results without the channels that went."""
    value, fields = node.meta["val"], channels.values[node]
    if isinstance(value, Tensor):
        value, fields = [value], [fields]
    for part, of_part in zip(value, fields, strict=True):
        shape = list(part.shape)
        for field in of_part:
            if len(along := varying(field)) == 1:
                shape[along[0]] = int((~removed[channels.of(field.reshape(-1))]).sum())
        yield tuple(shape)


def _shapes_of_run(
    small: nn.Module, dummy_input: Any, graph: Graph, channels: ChannelMap
) -> dict[Node, Shapes] | None:
    """Run the small model once; None if its calls cannot be told from each other."""
    args, kwargs = as_inputs(dummy_input)
    found: dict[Node, Shapes] = {}
    forwards = ((evaluating, graph.nodes), (forward_of_training, graph.training))
    for (mode, nodes), names in zip(forwards, graph.calls, strict=True):
        own = [node for node in channels.halvings if node in set(nodes)]
        if not own:
            continue
        if any(node not in graph.called for node in own):
            return None
        try:
            with mode(small), torch.no_grad(), watch_sizes(small) as log:  # type: ignore[operator]
                small(*args, **kwargs)
        except Exception:  # perhaps a forward that does not take such integers
            return None
        if tuple(call.name for call in log.calls) != names:
            return None
        found.update({node: log.calls[graph.called[node].index].shapes for node in own})
    return found


def _shapes_of_trace(
    small: nn.Module, dummy_input: Any, graph: Graph, channels: ChannelMap
) -> dict[Node, Shapes] | None:
    """Trace the small model; None if it has not the same operators in the same order."""
    # Others may come and go with the widths: copies that a single channel does not need, say.
    kinds = {n.target for n in channels.halvings}
    dense = [n for n in graph.all_nodes if n.target in kinds]
    now = [n for n in trace(small, dummy_input).all_nodes if n.target in kinds]
    if len(dense) != len(now):
        return None
    found = {}
    for node, other in zip(dense, now, strict=True):
        value = other.meta["val"]
        found[node] = tuple(
            tuple(part.shape) for part in ([value] if isinstance(value, Tensor) else value)
        )
    return found
