"""On what a verification runs both models: few samples, small images where large ones cost much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nni_gconv.graph import Graph, Replay, as_inputs, shape_of

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

#: Values of a forward that are held at a time: 1 GiB in float64.
MOST = 2**27


def attempts(dummy_input: Any, graph: Graph) -> list[tuple[torch.dtype, Inputs, str | None]]:
    """List precisions and inputs to try: few samples, all of them, then the model's own float32.

    A forward may hold its batch, or create float32 tensors of its own. Before them stand inputs
    whose values take no more than :data:`MOST` numbers, where those of few samples do.

    Returns
    -------
    list of (dtype, inputs, str or None)
        The last says what is smaller than in the example, and why.
    """
    given = as_inputs(dummy_input)
    few = few_samples(given)
    inputs = [given] if _lengths(given) == _lengths(few) else [few, given]
    tried: list[tuple[torch.dtype, Inputs, str | None]] = []
    for smaller in _within(few, graph):
        shapes = ", ".join(str(tuple(x.shape)) for x in _tensors(smaller))
        needed = _numbers(graph, few) * 8 / 2**30
        why = f"two samples of the example take {needed:.1f} GiB of values"
        tried.append((torch.float64, smaller, f"verified on inputs of {shapes}: {why}"))
    tried += [(torch.float64, x, None) for x in inputs]
    return [*tried, (torch.float32, given, None)]


def _within(few: Inputs, graph: Graph) -> list[Inputs]:
    """List what holds less than few samples do, if they hold too much; what fits comes first."""
    needed = _numbers(graph, few)
    if needed <= MOST:
        return []
    one = few_samples(few, 1)
    per_sample = needed / max(_lengths(few), default=1)
    found = [one]
    images = [x for x in _tensors(one) if x.dim() > 2 and x.is_floating_point()]
    largest = max((max(x.shape[2:]) for x in images), default=0)
    dims = max((x.dim() - 2 for x in images), default=1)
    size = largest
    while per_sample * (size / max(largest, 1)) ** dims > MOST and size > 32:
        size = max(32, (size - 1) // 32 * 32)
    if size < largest:
        share = size / largest

        def smaller(value: Any) -> Any:
            if not any(value is image for image in images):
                return value
            sizes = [max(32, round(n * share) // 32 * 32) for n in value.shape[2:]]
            return value.new_zeros((*value.shape[:2], *map(min, sizes, value.shape[2:])))

        found.insert(0, pytree.tree_map(smaller, one))
    return found


def _numbers(graph: Graph, inputs: Inputs) -> float:
    """Count the numbers that a forward holds at most at a time, of so many samples."""
    traced = max((shape_of(node)[0] for node in graph.inputs if shape_of(node)), default=1)
    samples = max(_lengths(inputs), default=1)
    return Replay(graph).most_elements() * samples / max(traced, 1)


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]


def _lengths(inputs: Inputs) -> list[int]:
    return [len(x) for x in _tensors(inputs)]


def few_samples(inputs: Inputs, most: int = 2) -> Inputs:
    """Take the first samples of each tensor."""

    def first(value: Any) -> Any:
        return value[:most] if isinstance(value, Tensor) and value.dim() > 1 else value

    few: Inputs = pytree.tree_map(first, inputs)
    return few


def other_sizes(given: Inputs) -> list[Inputs]:
    """List inputs of another batch: of another size too, and of the same for models that need it.

    What a cut has made of a number in the forward is right at the example and may be wrong beside.
    """
    tensors = [x for x in pytree.tree_leaves(given) if isinstance(x, Tensor) and x.dim() > 1]
    if len({len(x) for x in tensors}) != 1:
        return []
    batch = 1 if len(tensors[0]) > 1 else 2

    def sized(value: Any, change: Callable[[int], int]) -> Any:
        if not isinstance(value, Tensor) or value.dim() < 2:
            return value
        image = value.is_floating_point() and value.dim() > 2
        sizes = [change(n) for n in value.shape[2:]] if image else value.shape[2:]
        return value.new_zeros((batch, value.shape[1], *sizes))

    return [
        pytree.tree_map(lambda value, c=change: sized(value, c), given)
        for change in (_another_size, lambda size: size)
    ]


def _another_size(size: int) -> int:
    """Return a smaller size that networks take which halve theirs five times; a larger if small."""
    return max(32, size // 64 * 32) if size > 32 else size + size // 2


def randomised(inputs: Any, dtype: torch.dtype, seed: int) -> Inputs:
    """Give random numbers to floating-point inputs."""
    generator = torch.Generator().manual_seed(seed)

    def randomise(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator, dtype=dtype).to(value.device)
        return value

    return pytree.tree_map(randomise, inputs)
