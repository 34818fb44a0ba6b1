"""Covariances of what layers read, against those of all places."""

import pytest
import torch
from processes import run
from torch import nn
from torch.nn import functional as F

from nni_gconv import SecondOrderPruner
from nni_gconv.errors import DataError
from nni_gconv.pruning.calibration import Calibration, moments
from nni_gconv.pruning.calibration.gram import gram
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


def test_wide_layers_are_parted_in_blocks(monkeypatch):
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    whole = read_moments(net, Calibration(images()))["3.weight"]
    monkeypatch.setattr(moments, "MOST_COLUMNS", 40)
    found = read_moments(net, Calibration(images()))
    assert found["3.weight"].shape == (3, 32, 32)
    for number, block in enumerate(found["3.weight"]):
        own = slice(32 * number, 32 * number + 32)
        assert torch.allclose(block, whole[0, own, own], atol=1e-6)
    config = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    pruner = SecondOrderPruner(net, config, calibration=images(), dummy_input=images(1))
    assert int(pruner.compress()[1]["0"]["bias"].sum()) == 3


def test_blocks_choose_as_the_whole_does_where_they_are_independent(monkeypatch):
    """Channels of one block each: what is between blocks is zero, up to what images show."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 4)).eval()
    x = torch.randn(4000, 12)
    with torch.no_grad():
        net[1].weight.copy_(torch.block_diag(*torch.randn(3, 4, 4)))
        net[1].bias.zero_()
    config = [{"op_names": ["1"], "sparse_ratio": 0.5}]

    def kept():
        calibration = Calibration(x, images=4000)
        pruner = SecondOrderPruner(net, config, calibration=calibration, dummy_input=x[:1])
        _, masks = pruner.compress()
        pruner.unwrap_model()
        return masks["1"]["bias"]

    whole = kept()
    monkeypatch.setattr(moments, "MOST_COLUMNS", 4)
    assert torch.equal(kept(), whole)


def test_a_layer_that_no_blocks_fit_is_left_out_with_a_word(monkeypatch, caplog):
    monkeypatch.setattr(moments, "MOST_COLUMNS", 1)
    net = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2 * 67, 3)).eval()
    x = torch.randn(8, 4, 1, 67)
    assert list(read_moments(net, Calibration(x))) == ["0.weight"]
    assert "2.weight has too many columns: left out" in caplog.text


@pytest.mark.parametrize("columns", [3, 700, 1030])
def test_gram_is_the_product_and_symmetric(columns):
    x = torch.randn(2, 5, columns, dtype=torch.float64)
    assert torch.allclose(gram(x), x.mT @ x)
    assert torch.equal(gram(x), gram(x).mT)


@pytest.mark.slow
def test_two_processes_choose_as_one_does(tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        done = run("calibration_process.py", tmp_path / name, processes=processes)
        assert done.code == 0, done.said
    one, first, second = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("one-0.pt", "two-0.pt", "two-1.pt")
    )
    assert (one["seen"], first["seen"], second["seen"]) == (4, 2, 2)  # batches
    for name, matrix in one["moments"].items():
        assert torch.equal(first["moments"][name], second["moments"][name])
        assert torch.allclose(first["moments"][name], matrix, rtol=1e-12, atol=1e-12)
    for name, mask in one["masks"].items():
        assert torch.equal(first["masks"][name], mask)
        assert torch.equal(second["masks"][name], mask)
    for name, weight in first["weights"].items():
        assert torch.equal(second["weights"][name], weight)
        assert torch.equal(one["weights"][name], weight)


def test_places_of_wide_layers_wait_for_those_of_further_batches(monkeypatch):
    """A sum of many columns is added to once, not with every batch; it is the same sum."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, moments._WIDE), nn.Tanh(), nn.Linear(moments._WIDE, 2))
    x = torch.randn(240, 8)
    products = []

    def counted(columns):
        products.append(columns.shape[-1])
        return gram(columns)

    monkeypatch.setattr(moments, "gram", counted)
    found = read_moments(net, Calibration(x, batch_size=40))
    # Once in the six batches and once for the means, which narrow layers add with each batch.
    assert products.count(moments._WIDE) == 2
    assert products.count(8) == 7
    read = net[1](net[0](x)).detach().double()
    assert torch.allclose(found["2.weight"][0], read.T.cov(correction=0), atol=1e-5)
