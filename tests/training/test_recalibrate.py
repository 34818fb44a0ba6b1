"""Statistics of batch norms, taken anew."""

import copy

import pytest
import torch
from torch import nn

from nni_gconv import recalibrate_bn
from nni_gconv.errors import DataError


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5), nn.Conv2d(4, 3, 1),
        nn.BatchNorm2d(3),
    )  # fmt: skip


def batches(count=5):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 2, 8, 8, generator=generator), None) for _ in range(count)]


def test_the_average_over_batches():
    model = net()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    assert recalibrate_bn(model, batches()) == 5
    seen = [model[0](images) for images, _ in batches()]
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert [m.training for m in model.modules()] == modes
    assert (model[1].momentum, model[4].momentum) == (0.3, 0.1)
    for name, tensor in model.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, before[name]), name


def test_dropout_stays_off_so_the_statistics_are_those_of_use():
    first, second = net(), net()
    recalibrate_bn(first, batches())
    torch.manual_seed(99)
    recalibrate_bn(second, batches())
    assert torch.equal(first[4].running_mean, second[4].running_mean)


def test_so_many_batches_and_none():
    model = net()
    assert recalibrate_bn(model, batches(), max_batches=2) == 2
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match="no batches"):
        recalibrate_bn(model, [])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_every_image_counts_the_same():
    """A last batch of few images is no more than they are."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(9, 2, 8, 8, generator=generator)
    images[8] += 5
    model = net()
    assert recalibrate_bn(model, images.split(4)) == 3
    seen = model[0](images)
    torch.testing.assert_close(model[1].running_mean, seen.mean((0, 2, 3)))
    variances = [part.var((0, 2, 3)) * len(part) for part in seen.split(4)]
    torch.testing.assert_close(model[1].running_var, sum(variances) / 9)


def narrow():
    """A norm that sees one value a channel of each image."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("last", "error", "message"),
    [
        (torch.randn(1, 3), DataError, "at least two images"),
        (torch.randn(4, 5), RuntimeError, "shapes"),
    ],
)
def test_what_fails_costs_no_statistics(last, error, message):
    model = narrow()
    recalibrate_bn(model, [torch.randn(8, 3)])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        recalibrate_bn(model, [torch.randn(8, 3), last])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model[1].momentum == 0.1
