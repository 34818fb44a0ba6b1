"""Each criterion against a few lines that compute it another way, one image at a time."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from mask_tools import seeded
from pruning_nets import GroupBlock, conv, mobile_net, randomised
from torch import nn
from torch.nn import functional as F

from nni_gconv.pruning.calibration import Calibration
from nni_gconv.pruning.criteria import (
    ActivationPruner,
    FisherPruner,
    HessianPruner,
    LampPruner,
    MagnitudePruner,
    RandomPruner,
    TaylorPruner,
)
from nni_gconv.training.zoo import create_model


class Twice(nn.Module):
    """One convolution is used twice, and one is transposed."""

    def __init__(self):
        super().__init__()
        self.stem, self.again = conv(3, 6), conv(6, 6)
        self.up = nn.ConvTranspose2d(6, 8, 2, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.again(self.again(self.stem(x).relu()).relu()).relu()
        return self.head(self.up(x).relu().mean((2, 3)))


NETS = {
    "residual": lambda: create_model("resnet8b", width=0.5),
    "depthwise": mobile_net,
    "grouped": GroupBlock,
    "twice": Twice,
}


@pytest.fixture(params=NETS)
def net(request):
    return randomised(seeded(NETS[request.param])).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(7, 3, 8, 8, dtype=torch.float64, generator=generator)
    return images, torch.tensor([0, 1, 2, 3, 0, 1, 2])


def every(net):
    """Select all convolutions."""
    return [{"op_names": list(layers_of(net)), "sparse_ratio": 0.5}]


def layers_of(net):
    return {n: m for n, m in net.named_modules() if hasattr(m, "kernel_size")}


def one_by_one(net, batch):
    """Gradients of each image's loss: of weights, and y * dL/dy summed over positions."""
    net = copy.deepcopy(net).eval()
    said, weights, gates = {}, {}, {}

    def keep(name, _, x, y):
        y.retain_grad()
        said.setdefault(name, []).append((x[0].detach(), y))

    for name, module in layers_of(net).items():
        module.register_forward_hook(partial(keep, name))
    for image, label in zip(*batch, strict=True):
        said.clear()
        net.zero_grad()
        F.cross_entropy(net(image[None]), label[None]).backward()
        for name, module in layers_of(net).items():
            weights.setdefault(name, []).append(module.weight.grad.clone())
            per_use = [(y.detach() * y.grad).sum((0, 2, 3)) for _, y in said[name]]
            gates.setdefault(name, []).append(sum(per_use))
    return ({n: torch.stack(g) for n, g in found.items()} for found in (weights, gates))


def filters(module, values):
    """Sum numbers in the shape of a weight over each filter."""
    return values.movedim(1 if module.__class__.__name__ == "ConvTranspose2d" else 0, 0).flatten(1)


def by_channel(pruner, per_filter):
    """Sum numbers of filters over the layers of each set."""
    found = []
    for coupled in pruner.sets:
        total = np.zeros(coupled.size)
        for member in coupled.members:
            np.add.at(total, member.units, per_filter[member.module].numpy()[member.rows])
        found.append(total)
    return found


def same(pruner, expected):
    requests = pruner.requests()
    assert len(requests) == len(expected) > 1
    for request, wanted in zip(requests, expected, strict=True):
        assert wanted.max() > 0
        assert np.allclose(request.scores, wanted, rtol=1e-5, atol=1e-9 * wanted.max())


def made(kind, net, batch, **options):
    calibration = Calibration([batch], batch_size=3)
    return kind(net, every(net), dummy_input=batch[0], calibration=calibration, **options)


@pytest.mark.parametrize("joint", [False, True])
def test_taylor(net, batch, joint):
    weights, _ = one_by_one(net, batch)
    terms = {
        n: filters(m, m.weight.detach() * weights[n].mean(0)) for n, m in layers_of(net).items()
    }
    size = {n: t.sum(1).abs() if joint else t.abs().sum(1) for n, t in terms.items()}
    pruner = made(TaylorPruner, net, batch, joint=joint)
    same(pruner, by_channel(pruner, size))


def test_hessian(net, batch):
    weights, _ = one_by_one(net, batch)
    found = {
        n: filters(m, m.weight.detach() ** 2 * (weights[n] ** 2).mean(0)).sum(1)
        for n, m in layers_of(net).items()
    }
    pruner = made(HessianPruner, net, batch)
    same(pruner, by_channel(pruner, found))


def test_fisher(net, batch):
    _, gates = one_by_one(net, batch)
    pruner = made(FisherPruner, net, batch)
    same(pruner, by_channel(pruner, {n: (g**2).mean(0) for n, g in gates.items()}))


def test_fisher_with_one_gate_a_set(net, batch):
    _, gates = one_by_one(net, batch)
    pruner = made(FisherPruner, net, batch, gate="set")
    images = [by_channel(pruner, {n: g[i] for n, g in gates.items()}) for i in range(len(batch[0]))]
    same(pruner, [np.mean(np.square(s), axis=0) for s in zip(*images, strict=True)])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_activation(net, batch, norm):
    read = {}
    dense = copy.deepcopy(net).eval()
    for name, module in layers_of(dense).items():
        module.register_forward_hook(
            lambda m, x, y, name=name: read.setdefault(name, []).append(x[0])
        )
    with torch.no_grad():
        dense(batch[0])
    found = {}
    for name, module in layers_of(net).items():
        size = torch.cat(read[name]).pow(2).mean((0, 2, 3)).sqrt()
        weight = module.weight.detach()
        if isinstance(module, nn.ConvTranspose2d):
            weighed = weight.abs() * size.view(-1, 1, 1, 1)
        else:
            # One filter after the other, with the inputs of its group.
            per = weight.shape[1]
            every = len(weight) // module.groups
            weighed = torch.stack([
                f.abs() * size[i // every * per :][:per].view(-1, 1, 1)
                for i, f in enumerate(weight)
            ])  # fmt: skip
        terms = filters(module, weighed)
        found[name] = terms.sum(1) if norm == "l1" else terms.pow(2).sum(1).sqrt()
    pruner = made(ActivationPruner, net, (batch[0],), norm=norm, reduction="sum")
    same(pruner, by_channel(pruner, found))


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
def test_magnitude(net, batch, norm, order):
    found = {n: filters(m, m.weight.detach()).norm(order, dim=1) for n, m in layers_of(net).items()}
    pruner = MagnitudePruner(net, every(net), dummy_input=batch[0], norm=norm, reduction="sum")
    same(pruner, by_channel(pruner, found))


def test_lamp(net, batch):
    energy = {n: filters(m, m.weight.detach()).pow(2).sum(1) for n, m in layers_of(net).items()}
    pruner = LampPruner(net, every(net), dummy_input=batch[0])
    expected = []
    for n in by_channel(pruner, energy):
        expected.append(np.array([x / n[n >= x].sum() for x in n]))
        assert expected[-1].max() == pytest.approx(1)
    same(pruner, expected)


def test_lamp_of_equal_and_of_dead_channels():
    net = nn.Sequential(conv(1, 4, 1, bias=False), conv(4, 2, 1), nn.Flatten())
    net[0].weight.data = torch.tensor([0.0, 2.0, 2.0, 0.0]).view(4, 1, 1, 1)
    config_list = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    (request,) = LampPruner(net, config_list, dummy_input=torch.zeros(1, 1, 4, 4)).requests()
    assert request.scores.tolist() == [0.0, 0.5, 1.0, 0.0]


def test_random_is_of_its_seed(net, batch):
    def drawn(seed):
        pruner = RandomPruner(copy.deepcopy(net), every(net), dummy_input=batch[0], seed=seed)
        first, second = ([r.scores.tolist() for r in pruner.requests()] for _ in range(2))
        assert first == second
        return first

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "prod", "first"])
def test_reductions(reduction, batch):
    net = randomised(seeded(NETS["residual"])).double()
    pruner = MagnitudePruner(net, every(net), dummy_input=batch[0], reduction=reduction)
    join = {"sum": np.sum, "mean": np.mean, "max": np.max, "prod": np.prod}
    assert max(len(s.members) for s in pruner.sets) > 1
    for coupled, request in zip(pruner.sets, pruner.requests(), strict=True):
        rows = []
        for m in coupled.members:
            norms = layers_of(net)[m.module].weight.detach().flatten(1).norm(dim=1).numpy()
            own = np.zeros(coupled.size)
            own[m.units] = norms[m.rows]
            rows.append(own)
        wanted = rows[0] if reduction == "first" else join[reduction](np.stack(rows), axis=0)
        assert np.allclose(request.scores, wanted)


def test_losses_that_add_up_are_summed_unless_coupling_is_asked_for(batch):
    net = randomised(seeded(NETS["residual"])).double()
    found = {}
    for key, options in {
        "default": {}, "sum": {"reduction": "sum"}, "mean": {"coupling": "mean"},
    }.items():  # fmt: skip
        pruner = made(FisherPruner, copy.deepcopy(net), batch, **options)
        found[key] = [r.scores for r in pruner.requests()]
    assert all(np.array_equal(a, b) for a, b in zip(found["default"], found["sum"], strict=True))
    assert any(not np.allclose(a, b) for a, b in zip(found["sum"], found["mean"], strict=True))
