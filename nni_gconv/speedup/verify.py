"""Masked and small model must agree; where they do not, the first layer that parts is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nni_gconv import compat
from nni_gconv.errors import ConfigError, SpeedupError
from nni_gconv.graph import ChannelMap, ChannelOrder, Graph, as_inputs, varying
from nni_gconv.modes import drawing_alike, evaluating
from nni_gconv.speedup.precise import PreciseModel
from nni_gconv.speedup.verify_inputs import (
    Inputs,
    attempts,
    few_samples,
    other_sizes,
    randomised,
)

_FAILURES = (RuntimeError, ValueError, IndexError, AssertionError)

#: Largest relative difference by dtype, as the contract promises.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Verified(NamedTuple):
    """What a verification saw.

    Attributes
    ----------
    difference : float
        Largest difference relative to the largest output.
    note : str or None
        On what it was run, if that is less than the example.
    """

    difference: float
    note: str | None


def verify_equal(
    masked: PreciseModel,
    small: PreciseModel,
    dummy_input: Any,
    *,
    graph: Graph,
    channels: ChannelMap,
    order: ChannelOrder,
    seed: int = 0,
) -> Verified:
    """Run both models on the same random inputs and compare every output.

    Once more at another batch, and at another size of images where the masked model takes it. Where
    the example's values would take more than :data:`~nni_gconv.speedup.verify_inputs.MOST` numbers
    a single sample is run, of smaller images if need be and the model takes them.

    Parameters
    ----------
    masked, small : PreciseModel
        Both are moved to eval mode and, where that cannot be run, from float64 to float32.
    dummy_input : Tensor, tuple or dict
        Gives shapes and dtypes; floating-point inputs are replaced by random numbers. Of a batch
        two samples are run where the model takes them.
    graph, channels, order
        What the small model was made from; used to name the layer where the two part.
    seed : int
        Seed of the random inputs.

    Returns
    -------
    Verified

    Raises
    ------
    SpeedupError
        The models differ by more than 1e-9 (float64) or 1e-4 (models that only run in float32).
    """
    error: Exception | None = None
    for model in (masked, small):
        model.module.eval()
    for dtype, given, note in attempts(dummy_input, graph):
        inputs = randomised(given, dtype, seed)
        try:
            expected, got = (_outputs_in(dtype, model, inputs, seed) for model in (masked, small))
        except _FAILURES as failed:
            error = failed
            continue
        context = _Compared(masked, small, graph, channels, order, TOLERANCE[dtype], seed)
        worst = context.check(inputs, expected, got)
        for other in other_sizes(given):
            if context.check_other(randomised(other, dtype, seed + 1)):
                break
        return Verified(worst, note)
    raise SpeedupError(f"the models do not run on random inputs: {error}")


@dataclass(frozen=True)
class _Compared:
    """Two models in one precision, and what it takes to name the layer where they part."""

    masked: PreciseModel
    small: PreciseModel
    graph: Graph
    channels: ChannelMap
    order: ChannelOrder
    tolerance: float
    seed: int

    def check(
        self, inputs: Inputs, expected: list[Tensor], got: list[Tensor], where: str = ""
    ) -> float:
        """Return the largest difference of two outputs; raise a SpeedupError if it is too large."""
        worst = max((_difference(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)
        if not worst <= self.tolerance:
            layer = _first_divergence(
                self.masked, self.small, inputs, self.graph, self.channels, self.order,
                self.tolerance, self.seed,
            )  # fmt: skip
            raise SpeedupError(
                f"the small model differs from the masked one by {worst:.1e} of its largest "
                f"output{where}; they part at {layer}"
            )
        return worst

    def check_other(self, inputs: Inputs) -> bool:
        """Compare at inputs of another size; tell whether the masked model takes them."""
        try:
            expected = _precise_outputs(self.masked, inputs, self.seed)
        except Exception:  # whatever a forward says to a size it is not made for
            return False
        if not all(bool(x.isfinite().all()) for x in expected if x.is_floating_point()):
            return False
        shapes = [tuple(x.shape) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
        where = f" at inputs of {', '.join(map(str, shapes))}"
        try:
            got = _precise_outputs(self.small, inputs, self.seed)
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SpeedupError(
                f"the small model does not run{where}, as the masked one does: {first}"
            ) from error
        self.check(inputs, expected, got, where)
        return True


def check_dummy(dummy_input: Any) -> None:
    """Refuse example arguments that are no numbers: nothing that is made of them can be checked."""
    for leaf in pytree.tree_leaves(as_inputs(dummy_input)):
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == 0:
            raise ConfigError("dummy_input: the batch is empty; of nothing nothing can be checked")
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(leaf.isnan().any()):
            raise ConfigError("dummy_input: holds NaN; give numbers, zeros will do")


def check_finite(small: nn.Module, dummy_input: Any, *, seed: int = 0) -> None:
    """Refuse a model that overflows in its own type, however right it is in float64.

    Raises
    ------
    SpeedupError
        On random inputs an output is not finite. Names the largest of the model's parameters.
    """
    sizes = {n: float(p.detach().abs().max()) for n, p in small.named_parameters() if p.numel()}
    types = {p.dtype for p in small.parameters() if p.is_floating_point()}
    if len(types) != 1:
        return
    dtype = types.pop()
    inputs = randomised(few_samples(as_inputs(dummy_input)), dtype, seed)
    try:
        with evaluating(small):
            outputs = _outputs(small, inputs, seed)
    except Exception:  # it has run on the example itself
        return
    if not all(bool(x.isfinite().all()) for x in outputs if x.is_floating_point()):
        largest = max(sizes, key=lambda name: (sizes[name] != sizes[name], sizes[name]))
        raise SpeedupError(
            f"the small model's output is not finite in {str(dtype).removeprefix('torch.')}; its "
            f"largest parameter is {largest}, {sizes[largest]:.1e}"
        )


def _outputs_in(dtype: torch.dtype, model: PreciseModel, inputs: Inputs, seed: int) -> list[Tensor]:
    """Run a model in a type, and once more with all its tensors in it if it asks for that."""
    model.to(dtype)
    try:
        return _precise_outputs(model, inputs, seed)
    except _FAILURES:
        if not model.unshare():
            raise
    return _precise_outputs(model, inputs, seed)


def _precise_outputs(model: PreciseModel, inputs: Inputs, seed: int) -> list[Tensor]:
    with model.reading():
        return _outputs(model.module, inputs, seed)


def _outputs(model: nn.Module, inputs: tuple[tuple, dict], seed: int) -> list[Tensor]:
    """Run a model; what its forward draws at random is the same in each run."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    with torch.no_grad(), drawing_alike(seed, (x.device for x in tensors)):
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
    masked: PreciseModel,
    small: PreciseModel,
    inputs: tuple[tuple, dict],
    graph: Graph,
    channels: ChannelMap,
    order: ChannelOrder,
    tolerance: float,
    seed: int,
) -> str:
    """Name the first module, in the order they run, whose kept channels differ."""
    last = {graph.owner(node): node for node in graph.nodes if node.op == "call_function"}
    reference = _record(masked, inputs, seed)
    for name, got in _record(small, inputs, seed).items():
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


def _record(model: PreciseModel, inputs: tuple[tuple, dict], seed: int) -> dict[str, Tensor]:
    """Outputs of the innermost modules, in the order they ran first."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.module.named_modules():
        if any(True for _ in module.children()) or compat.is_scripted(module):
            continue

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor):
                seen.setdefault(name, output.detach().clone())

        handles.append(module.register_forward_hook(keep))
    try:
        _precise_outputs(model, inputs, seed)
    finally:
        for handle in handles:
            handle.remove()
    return seen
