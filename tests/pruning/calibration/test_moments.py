"""Covariances of what layers read, against those of all places."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_gconv import SecondOrderPruner
from nni_gconv.errors import DataError
from nni_gconv.pruning.calibration import Calibration
from nni_gconv.pruning.calibration.moments import read_moments


def images(count=40):
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [40, 16])
def test_covariances_are_those_of_all_places(batch_size):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    found = read_moments(net, Calibration(images(), batch_size=batch_size))
    used = images()[: 40 // (-(-40 // batch_size)) * (-(-40 // batch_size))]
    columns = F.unfold(used, 3).transpose(1, 2).reshape(-1, 36)
    for group, part in enumerate(columns.double().chunk(2, dim=1)):
        assert torch.allclose(found["0.weight"][group], part.T.cov(correction=0), atol=1e-5)
    read = net[2](net[1](net[0](used))).detach().double()
    assert torch.allclose(found["3.weight"][0], read.T.cov(correction=0), atol=1e-5)


def test_what_hardly_varies_about_a_large_mean_is_not_lost():
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    with torch.no_grad():
        net[0].weight.mul_(1e-4)
        net[0].bias.fill_(100.0)
    values = torch.linalg.eigvalsh(read_moments(net, Calibration(images()))["1.weight"][0])
    assert values.min() > -1e-3 * values.max()
    config = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    pruner = SecondOrderPruner(net, config, calibration=images(), dummy_input=images(1))
    assert int(pruner.compress()[1]["0"]["bias"].sum()) == 4


def test_numbers_that_are_not_finite_are_told_by_the_layer_that_reads_them():
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    with torch.no_grad():
        net[0].bias[3] = torch.inf
    with pytest.raises(DataError, match=r"what 1\.weight reads is not finite"):
        read_moments(net, Calibration(images()))
