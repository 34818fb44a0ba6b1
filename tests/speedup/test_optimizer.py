"""After speedup, training goes on: a step of the small model is a step of the masked one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from speedup_tools import randn, silent_masks
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.errors import SpeedupError
from nni_gconv.training.zoo import create_model

X, Y = randn(4, 3, 16, 16).double(), torch.tensor([0, 1, 2, 3])


def optimizers():
    def sgd(p):
        return torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)

    def adam(p):
        return torch.optim.Adam(p, lr=1e-3, amsgrad=True)

    def adamw(p):
        return torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0)

    return [sgd, adam, adamw]


def step(model, optimizer, masks=None):
    """One step; with masks, of the masked model: weights and gradients are masked."""
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    if masks:
        for name, mask in masks.items():
            model.get_parameter(name).grad.mul_(mask)
    optimizer.step()


@pytest.mark.parametrize("make", optimizers(), ids=lambda f: f.__name__)
def test_a_step_of_the_small_model_is_a_step_of_the_masked_one(make):
    torch.manual_seed(0)
    # In float64 and without batch statistics the two are equal but for the order of sums.
    dense = create_model("resnet8", width=0.5).double().eval()
    optimizer = make(dense.parameters())
    for _ in range(3):
        step(dense, optimizer)
    given = silent_masks(dense, X, share=0.4)
    masks = {f"{m}.{t}": v.double() for m, targets in given.items() for t, v in targets.items()}

    masked = copy.deepcopy(dense)
    other = make(masked.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    names = dict(masked.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            names[name].mul_(mask)
            for value in other.state[names[name]].values():
                if value.shape == mask.shape:
                    value.mul_(mask)

    speedup = ModelSpeedup(dense, X, given)
    small = speedup.speedup_model()
    assert speedup.rebind_optimizer(optimizer) is optimizer
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    for _ in range(3):
        step(masked, other, masks)
        step(small, optimizer)
    with torch.no_grad():
        expected, got = masked(X), small(X)
    assert float((expected - got).abs().max() / expected.abs().max()) < 1e-9


def test_an_optimizer_of_another_model_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).double()
    speedup = ModelSpeedup(net, X, silent_masks(net, X, share=0.5))
    speedup.speedup_model()
    stranger = torch.optim.SGD(nn.Conv2d(3, 5, 1).parameters(), lr=0.1)
    with pytest.raises(SpeedupError, match=r"shape \(5, 3, 1, 1\)"):
        speedup.rebind_optimizer(stranger)
