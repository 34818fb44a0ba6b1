"""What a layer reads, against the layer itself."""

import itertools

import pytest
import torch
from torch import nn

from nni_gconv.graph import trace
from nni_gconv.pruning.calibration.patches import (
    Geometry,
    SaidAt,
    matrix_shape,
    read_at,
    read_samples,
    sample_places,
    weight_matrix,
    weight_of,
)

CASES = [
    (nn.Conv1d, {"stride": 2, "padding": 1, "dilation": 2}),
    (nn.Conv2d, {"stride": (1, 2), "padding": (2, 0)}),
    (nn.Conv2d, {"padding": "same", "dilation": 2}),
    (nn.Conv2d, {"padding": "valid", "groups": 2}),
    (nn.Conv2d, {"padding": 1, "groups": 4}),
    (nn.Conv3d, {"padding": 1, "groups": 2, "stride": 2}),
    (nn.ConvTranspose1d, {"stride": 3, "dilation": 2, "output_padding": 2}),
    (nn.ConvTranspose2d, {"stride": 2, "padding": 1, "output_padding": (0, 1)}),
    (nn.ConvTranspose2d, {"groups": 2, "padding": 2, "stride": (1, 3)}),
    (nn.ConvTranspose2d, {"groups": 4, "padding": (1, 0), "dilation": 3, "stride": 2}),
    (nn.ConvTranspose3d, {"groups": 2, "stride": 2}),
]


def square(kernel, transposed):
    padding = kernel // 2
    return Geometry((kernel,) * 2, (1, 1), (padding,) * 2, (1, 1), 1, bool(transposed))


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_patches_times_weights_are_the_outputs(kind, options, kernel):
    torch.manual_seed(0)
    layer = kind(4, 8, kernel, bias=False, **options)
    rank = layer.weight.dim() - 2
    x = torch.randn(3, 4, *range(7, 7 + rank))
    graph = trace(layer.eval(), x)
    node = next(n for n in graph.nodes if n.op == "call_function")
    y = layer(x)
    places = sample_places((3, *y.shape[2:]), 5, torch.Generator().manual_seed(0))
    geometry = Geometry.of(node)
    read = read_at(x, geometry, places)
    matrix = weight_matrix(layer.weight, geometry)
    assert matrix.shape == matrix_shape(node)
    assert torch.equal(weight_of(matrix, layer.weight, geometry), layer.weight)
    weight = matrix.view(geometry.groups, -1, read.shape[2])
    said = torch.einsum("gnc,gfc->ngf", read, weight).flatten(1)
    assert torch.allclose(said, SaidAt(places)(y), atol=1e-5)
    by_pixel = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(read_at(by_pixel, geometry, places), read)
    if geometry.groups == 1:
        some = torch.tensor([0, 3])
        columns = torch.arange(read.shape[2]).view(4, -1)[some].flatten()
        ((_, every, _),), ((_, part, _),) = (
            read_samples(x, y.shape, geometry, 15, torch.Generator().manual_seed(0), 1, channels)
            for channels in (None, some)
        )
        assert torch.equal(part, every[..., columns])


@pytest.mark.parametrize("most", [20, 5])  # most pixels are read, or few
@pytest.mark.parametrize("geometry", [None, *(square(n, t) for n in (1, 3) for t in (0, 1))])
def test_some_channels_are_read_as_from_all(geometry, most):
    shape, said = ((5, 6, 4), (5, 6, 8)) if geometry is None else ((5, 4, 6, 6), (5, 8, 6, 6))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    some = torch.tensor([1, 2])

    def read(channels):
        generator = torch.Generator().manual_seed(1)
        return read_samples(x, said, geometry, 20, generator, 2, channels)

    for whole, part in zip(read(None), read(some), strict=True):
        columns = torch.arange(whole[1].shape[2]).view(4, -1)[some].flatten()
        assert whole[0] == part[0]
        assert torch.equal(whole[1][..., columns], part[1])


def test_places_are_distinct_and_the_same_for_a_seed():
    places = [sample_places((4, 5, 6), 7, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*places)
    assert places[0].shape == (28, 3)
    assert len({tuple(p) for p in places[0].tolist()}) == 28


def test_few_places_are_all_taken():
    places = sample_places((2, 3), 7, torch.Generator())
    assert [tuple(p) for p in places.tolist()] == list(itertools.product(range(2), range(3)))
