"""After speedup, training goes on: a step of the small model is a step of the masked one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from speedup_tools import randn, zeroing_masks
from torch import nn

from nni_gconv import ModelSpeedup, ProxSGD
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

    return [sgd, adam, adamw, prox_div, prox_mul, prox_zeros, prox_plain]


def prox(parameters, **options):
    """Gains for convolutions; the step depends on the size of a filter and on its mean gradient."""
    parameters = list(parameters)
    convs = [p for p in parameters if p.dim() == 4]
    rest = [p for p in parameters if p.dim() != 4]
    return ProxSGD([{"params": convs, "mu": 0.02}, {"params": rest}], lr=0.02, **options)


def prox_div(p):
    return prox(p)


def prox_mul(p):
    return prox(p, normalization="mul", adaptive=False)


def prox_zeros(p):
    return prox(p, exact_zeros=True)


def prox_plain(p):
    return ProxSGD(p, lr=1e-3)


def step(model, optimizer, masks=None):
    """One step; with masks, of the masked model: weights and gradients are masked."""
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    if masks:
        for name, mask in masks.items():
            model.get_parameter(name).grad.mul_(mask)
    optimizer.step()


def masks_of(plan, masked):
    """Where weights stay: those go as well that read zeroed channels and so act on nothing."""
    masks = {}
    for name, edit in plan.tensors.items():
        if name not in dict(masked.named_parameters()):
            continue
        masks[name] = torch.ones_like(masked.get_parameter(name))
        for dim, keep in edit.keep.items():
            gone = [i for i in range(masks[name].shape[dim]) if i not in keep]
            masks[name].index_fill_(dim, torch.tensor(gone, dtype=torch.int64), 0)
    return masks


@pytest.mark.parametrize("make", optimizers(), ids=lambda f: f.__name__)
def test_a_step_of_the_small_model_is_a_step_of_the_masked_one(make):
    torch.manual_seed(0)
    # In float64 and without batch statistics the two are equal but for the order of sums.
    dense = create_model("resnet8", width=0.5).double().eval()
    optimizer = make(dense.parameters())
    for _ in range(3):
        step(dense, optimizer)
    masked = copy.deepcopy(dense)
    other = make(masked.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    speedup = ModelSpeedup(dense, X, zeroing_masks(dense, X, share=0.4))
    small = speedup.speedup_model()
    masks = masks_of(speedup.plan, masked)
    assert any(not mask[:, 0].any() for mask in masks.values() if mask.dim() == 4)
    names = dict(masked.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            names[name].mul_(mask)
            for value in other.state[names[name]].values():
                if getattr(value, "shape", None) == mask.shape:
                    value.mul_(mask)

    assert speedup.rebind_optimizer(optimizer) is optimizer
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    for _ in range(3):
        step(masked, other, masks)
        step(small, optimizer)
    with torch.no_grad():
        expected, got = masked(X), small(X)
    assert float((expected - got).abs().max() / expected.abs().max()) < 1e-9


def test_a_filter_of_proxsgd_counts_the_weights_it_had_at_first():
    """Written down with the rest: a resumed training of the small model goes on alike."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).double()
    x = randn(4, 3, 4, 4).double()
    optimizer = prox(net.parameters())

    def train(net, optimizer):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    train(net, optimizer)
    speedup = ModelSpeedup(net, x, zeroing_masks(net, x, share=0.5))
    small = speedup.speedup_model()
    speedup.rebind_optimizer(optimizer)
    assert small[1].weight.shape == (2, 2, 1, 1)
    assert optimizer.state[small[1].weight]["filter_size"] == 4
    twin = copy.deepcopy(small)
    again, fresh = prox(twin.parameters()), prox(twin.parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(small, optimizer)
    train(twin, again)
    assert torch.equal(small[1].weight, twin[1].weight)
    train(twin, fresh)
    assert fresh.state[twin[1].weight]["filter_size"] == 2


def test_an_optimizer_of_another_model_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).double()
    speedup = ModelSpeedup(net, X, zeroing_masks(net, X, share=0.5))
    speedup.speedup_model()
    stranger = torch.optim.SGD(nn.Conv2d(3, 5, 1).parameters(), lr=0.1)
    with pytest.raises(SpeedupError, match=r"shape \(5, 3, 1, 1\)"):
        speedup.rebind_optimizer(stranger)


def cut_below_an_optimizer():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(X).mean().backward()  # a gradient of before may not hide it
    speedup = ModelSpeedup(net, X, zeroing_masks(net, X, share=0.5))
    return speedup, speedup.speedup_model(), optimizer


@pytest.mark.parametrize("again", ["the old one", "rebound", "made anew"])
@pytest.mark.parametrize("clear", ["optimizer", "model"])
def test_an_optimizer_that_was_left_behind_says_so(again, clear):
    speedup, small, optimizer = cut_below_an_optimizer()
    if again == "rebound":
        speedup.rebind_optimizer(optimizer)
    elif again == "made anew":
        optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = [p.clone() for p in small.parameters()]
    (optimizer if clear == "optimizer" else small).zero_grad()
    small(X).square().mean().backward()
    if again == "the old one":
        with pytest.raises(
            SpeedupError, match=r"3 of the optimizer's 4 parameters.*rebind"
        ) as caught:
            optimizer.step()
        assert "\n" not in str(caught.value)
    else:
        optimizer.step()
        assert not any(torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


def test_parameters_that_another_model_has_too_go_on():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).double()
    other[0].weight, other[0].bias = net[0].weight, net[0].bias
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    ModelSpeedup(net, X, zeroing_masks(net, X, share=0.5)).speedup_model()
    assert other[0].weight is not net[0].weight
    before = other[0].weight.detach().clone()
    other(X).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, other[0].weight)
