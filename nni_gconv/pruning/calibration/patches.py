"""What a layer reads at chosen places: rows of a matrix, one column for each of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from nni_gconv.graph import argument, op_name, shape_of

#: Layers whose outputs are a matrix of weights times what they read.
MATRIX_LAYERS = frozenset(
    {"linear", *(f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3))}
)
#: Places that are read at a time.
AT_A_TIME = 4096


def places_for(columns: int, each: int = 6, products: float = 1.5e11) -> int:
    """Choose how many places a layer is looked at: more where they are cheap.

    So many that their moments take `products`, 65,536 at most, `each` a column at least.

    Examples
    --------
    >>> [places_for(n) for n in (9, 576, 4608)]
    [65536, 65536, 27648]
    """
    return max(each * columns, min(65536, int(products) // columns**2))


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input, one number for each spatial dimension.

    A transposed one reads its input with zeros between the pixels, as many as its stride leaves,
    and moves over that pixel by pixel.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False

    @classmethod
    def of(cls, node: Node) -> Geometry | None:
        """Read it off a traced convolution; None for a linear layer."""
        if op_name(node) == "linear":
            return None
        kernel = shape_of(node.args[1])[2:]
        rank = len(kernel)

        def each(position: int, name: str, default: int) -> tuple[int, ...]:
            given = argument(node, position, name, default)
            given = [given] if isinstance(given, int) else list(given)
            return tuple(given * rank if len(given) == 1 else given)

        transposed = "transpose" in op_name(node)
        dilation = each(7 if transposed else 5, "dilation", 1)
        padding = argument(node, 4, "padding", 0)
        if padding == "same":
            pads = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        elif padding == "valid":
            pads = (0,) * rank
        else:
            pads = each(4, "padding", 0)
        groups = int(argument(node, 6, "groups", 1))
        return cls(kernel, each(3, "stride", 1), pads, dilation, groups, transposed)


def matrix_shape(node: Node) -> tuple[int, int]:
    """Filters of a layer, and columns of each: of the weight as a matrix."""
    first, second, *kernel = shape_of(node.args[1])
    geometry = Geometry.of(node)
    if geometry is not None and geometry.transposed:
        first, second = second * geometry.groups, first // geometry.groups
    return first, second * math.prod(kernel)


def weight_matrix(weight: Tensor, geometry: Geometry | None) -> Tensor:
    """Lay a weight out with a row for each filter: (filters, columns)."""
    if geometry is None or not geometry.transposed:
        return weight.flatten(1)
    groups = geometry.groups
    each = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return each.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def weight_of(matrix: Tensor, like: Tensor, geometry: Geometry | None) -> Tensor:
    """Undo :func:`weight_matrix`."""
    if geometry is None or not geometry.transposed:
        return matrix.view(like.shape)
    groups = geometry.groups
    each = matrix.view(groups, like.shape[1], len(like) // groups, -1)
    return each.transpose(1, 2).reshape(like.shape)


def sample_places(shape: tuple[int, ...], most: int, generator: torch.Generator) -> Tensor:
    """Choose places of a layer's output: the same number in every sample, at random.

    Parameters
    ----------
    shape : tuple of int
        ``(samples, *spatial)``.
    most : int
        Places in each sample; all of them where there are no more.
    generator : torch.Generator

    Returns
    -------
    Tensor of int64, shape (places, 1 + spatial)
        Sample and position, sorted.
    """
    samples, spatial = shape[0], shape[1:]
    positions = math.prod(spatial)
    if positions <= most:
        chosen = torch.arange(positions).expand(samples, -1)
    else:
        chosen = torch.rand(samples, positions, generator=generator).topk(most).indices
        chosen = chosen.sort(1).values
    sample = torch.arange(samples)[:, None].expand_as(chosen)
    flat = (sample * positions + chosen).reshape(-1)
    return torch.stack(torch.unravel_index(flat, shape), 1)


def read_at(x: Tensor, geometry: Geometry, places: Tensor) -> Tensor:
    """Gather what a convolution reads for outputs at these places.

    Parameters
    ----------
    x : Tensor, shape (samples, channels, *spatial)
    geometry : Geometry
    places : Tensor of int64, shape (n, 1 + spatial)

    Returns
    -------
    Tensor, shape (groups, n, channels / groups * taps)
        Columns in the order of :func:`weight_matrix`.
    """
    if geometry.transposed:
        x, geometry = _spread(x, geometry)
    rank = len(geometry.kernel)
    pixels = places[:, 0].view(-1, *[1] * rank)
    inside = torch.ones(1, dtype=torch.bool)
    for d, size in enumerate(x.shape[2:]):
        taps = torch.arange(geometry.kernel[d]) * geometry.dilation[d]
        taps = taps.flip(0) if geometry.transposed else taps
        at = places[:, 1 + d, None] * geometry.stride[d] + taps - geometry.padding[d]
        view = [len(places)] + [1] * rank
        view[1 + d] = -1
        pixels = pixels * size + at.clamp(0, size - 1).view(view)
        inside = inside & (at.ge(0) & at.lt(size)).view(view)
    by_pixel = x.movedim(1, -1)
    if by_pixel.is_contiguous():
        read = by_pixel.flatten(0, -2).index_select(0, pixels.flatten().to(x.device))
    else:
        index = torch.unravel_index(pixels.to(x.device), by_pixel.shape[:-1])
        read = by_pixel[index].flatten(0, -2)
    outside = (~inside).expand(pixels.shape).flatten().nonzero()[:, 0]
    read.index_fill_(0, outside.to(x.device), 0)  # padding; a padded copy of x would be far larger
    groups = read.view(len(places), -1, geometry.groups, read.shape[-1] // geometry.groups)
    return groups.permute(2, 0, 3, 1).reshape(geometry.groups, len(places), -1)


def _spread(x: Tensor, geometry: Geometry) -> tuple[Tensor, Geometry]:
    """Put zeros between pixels, so that a transposed convolution is one that moves over them."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], geometry.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    every = tuple(slice(None, None, step) for step in (1, 1, *geometry.stride))
    spread[every] = x
    pads: list[int] = []
    for axis, kernel in enumerate(geometry.kernel):
        stride, dilation = geometry.stride[axis], geometry.dilation[axis]
        before = (kernel - 1) * dilation - geometry.padding[axis]
        pads = [before, before + max(stride, dilation), *pads]
    still = (0,) * len(geometry.kernel)
    moved = replace(geometry, padding=still, stride=tuple(1 for _ in still))
    return torch.nn.functional.pad(spread, pads), moved


@dataclass(frozen=True)
class SaidAt:
    """Gathers what is shaped like the output of a layer at some places: (n, channels).

    Attributes
    ----------
    places : Tensor of int64, shape (n, 1 + spatial)
    last : bool
        Whether channels come last, as those of a linear layer, or behind the samples.
    """

    places: Tensor
    last: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        """Gather."""
        return (y if self.last else y.movedim(1, -1))[tuple(self.places.to(y.device).unbind(1))]


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Put tensors behind one another; a single one is not copied."""
    return torch.cat(list(parts), dim) if len(parts) > 1 else parts[0]


def is_matrix_layer(node: Node) -> bool:
    """Tell whether an operator is a convolution or linear layer."""
    return op_name(node) in MATRIX_LAYERS


def read_samples(
    read: Tensor,
    said: tuple[int, ...],
    geometry: Geometry | None,
    most: float,
    generator: torch.Generator,
    parts: int = 1,
    channels: Tensor | None = None,
) -> Iterator[tuple[int, Tensor, SaidAt]]:
    """Gather what a layer reads at places chosen at random.

    Parameters
    ----------
    read : Tensor
        Input of a convolution, (samples, channels, *spatial), or of a linear layer, whose channels
        come last.
    said : tuple of int
        Shape of its output.
    geometry : Geometry or None
        Of the convolution; None for a linear layer.
    most : float
        Places in all samples together, rounded up to as many in each.
    generator : torch.Generator
    parts : int
        The samples are dealt out to so many parts in turn.
    channels : Tensor of int64, optional
        Of a layer of one group: these alone are read.

    Yields
    ------
    part : int
    read : Tensor, shape (groups, n, columns)
    at : SaidAt
        Gathers at the same places what is shaped like the output: (n, filters).
    """
    shape = said[:-1] if geometry is None else (said[0], *said[2:])
    places = sample_places(shape, math.ceil(most / shape[0]), generator)
    taps = 1 if geometry is None else math.prod(geometry.kernel)
    if geometry is not None and _mostly_read(read, geometry, len(places) * taps):
        if channels is not None:
            read, channels = read.index_select(1, channels.to(read.device)), None
        read = read.movedim(1, -1).contiguous().movedim(-1, 1)  # once; rows are quick to gather
    for part in range(parts):
        own = places[places[:, 0] % parts == part]
        for some in own.split(AT_A_TIME) if len(own) else ():  # of one image a part has none
            at = SaidAt(some, last=geometry is None)
            found = at(read)[None] if geometry is None else read_at(read, geometry, some)
            if channels is not None:
                by_channel = found.unflatten(-1, (-1, taps))
                found = by_channel.index_select(2, channels.to(found.device)).flatten(2)
            yield part, found, at


def _mostly_read(x: Tensor, geometry: Geometry, pixels: int) -> bool:
    """Tell whether copying all pixels takes less than gathering this many where they stand.

    What a transposed convolution reads is copied in any case.
    """
    return geometry.transposed or math.prod((len(x), *x.shape[2:])) <= 2 * pixels
