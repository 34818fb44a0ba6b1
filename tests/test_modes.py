"""Looking at a model leaves no trace."""

import torch
from pruning_nets import plain_net
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.modes import drawing_alike
from nni_gconv.pruning.criteria.taylor import TaylorPruner

X = torch.zeros(2, 3, 8, 8)


def test_the_same_is_drawn_and_what_comes_then_is_as_if_nothing_had_been():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    drawn = []
    for _ in range(2):
        with drawing_alike(1, [torch.device("cpu")]):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert torch.equal(torch.rand(3), expected)


def test_a_gpu_that_begins_later_begins_with_the_users_seed(monkeypatch):
    """torch.manual_seed would keep its seed for every kind of device there may be."""
    seeded = []
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(kind, "manual_seed_all", seeded.append)
    torch.manual_seed(3)
    seeded.clear()
    net = nn.Sequential(plain_net(), nn.Dropout()).eval()
    images = torch.rand(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)
    config = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    pruner = TaylorPruner(net, config, dummy_input=X, calibration=[images])
    _, masks = pruner.compress()
    pruner.unwrap_model()
    ModelSpeedup(net, X, masks).speedup_model()
    assert seeded == []
