"""The quick forward of wrapped modules computes what NNI's does."""

from __future__ import annotations

import copy

import pytest
import torch
from nni.compression.base.target_space import PruningTargetSpace, TargetType
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.pruning import L1NormPruner
from pruning_nets import GroupBlock, conv, randomised
from torch import nn

from nni_gconv.compat import lighten_wrappers
from nni_gconv.pruning.methods.fpgm import FPGMPruner

HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned(compress=True):
    torch.manual_seed(0)
    net = randomised(GroupBlock())
    pruner = FPGMPruner(net, HALF, dummy_input=X)
    if compress:
        pruner.compress()
    return net, pruner


def outcome(net):
    """Output and all gradients."""
    net.zero_grad()
    out = net(X)
    out.square().mean().backward()
    return out.detach(), {n: p.grad.clone() for n, p in net.named_parameters()}


def slow(net, pruner):
    """Put NNI's forward back."""
    for wrapper in pruner._module_wrappers.values():
        wrapper.module.forward = ModuleWrapper.forward.__get__(wrapper)


@pytest.mark.parametrize("compress", [False, True])
def test_outputs_and_gradients_are_those_of_nni(compress):
    net, pruner = pruned(compress)
    out, gradients = outcome(net)
    slow(net, pruner)
    expected, theirs = outcome(net)
    assert torch.equal(out, expected)
    assert gradients.keys() == theirs.keys()
    assert all(torch.equal(gradients[name], theirs[name]) for name in theirs)


def test_a_mask_that_is_written_to_counts_at_once():
    net, pruner = pruned(compress=False)
    before = net(X)
    pruner.update_masks({"conv1": {"weight": torch.zeros(24, 16, 1, 1)}})
    assert not torch.allclose(net(X), before)
    pruner.update_masks({"conv1": {"weight": torch.ones(24, 16, 1, 1)}})
    assert torch.equal(net(X), before)
    masks = {k: v for k, v in net.state_dict().items() if k.endswith("conv1._nni_wrapper.weight")}
    net.load_state_dict({**net.state_dict(), **{k: 0 * v for k, v in masks.items()}})
    assert not torch.allclose(net(X), before)


def test_it_outlives_unwrapping_and_serves_copies():
    net, pruner = pruned()
    masked = net(X).detach()
    pruner.unwrap_model()
    dense = net(X)
    assert not torch.allclose(dense, masked)
    pruner.wrap_model()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(net(X), masked)
    assert not other(X).any()


def test_weights_are_saved_and_loaded_as_before():
    net, _ = pruned()
    outcome(net)
    state = {k: v.detach().clone() for k, v in net.state_dict().items()}
    other, _ = pruned(compress=False)
    outcome(other)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(state)
    assert torch.equal(other(X), net(X))
    trained = dict(net.named_parameters())
    assert all(torch.equal(p, trained[n]) for n, p in other.named_parameters())


def test_other_targets_go_through_nni():
    net = nn.Sequential(conv(3, 4, bias=False))
    pruner = L1NormPruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}])
    lighten_wrappers(pruner._module_wrappers)
    wrapper = pruner._module_wrappers["0"]
    assert net(X).any()
    space = PruningTargetSpace(wrapper, "_input_0", TargetType.INPUT, {"apply_method": "mul"})
    wrapper.pruning_target_spaces["_input_0"] = space
    space.mask = torch.zeros(3, 8, 8)
    assert not net(X).any()
