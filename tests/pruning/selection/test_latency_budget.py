"""A budget of latency: what is built, measured and said; no time is asserted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pruning_nets import GroupBlock
from torch import nn

from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.inference import ratio
from nni_gconv.profiling import count
from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.pruning.selection import latency

CONVS = [{"op_types": ["Conv2d"]}]
EXAMPLE = torch.zeros(4, 3, 16, 16)
FORMS = ("contiguous", "channels last")


def build():
    torch.manual_seed(0)
    return GroupBlock()


@pytest.mark.slow
def test_the_small_model_is_built_measured_and_inside(clock):
    net = build()
    pruner = FPGMPruner(net, CONVS, dummy_input=EXAMPLE, budget={"latency": 0.6})
    assert len(clock) == 1  # what can be reached is known before any training
    _, masks = pruner.compress()
    assert len(clock) <= 8
    dense, small, example = clock[-1]
    assert example is EXAMPLE
    assert dense is not net
    assert type(dense) is type(small) is GroupBlock
    assert not any(hasattr(m, "_nni_wrapper") for m in small.modules())
    assert isinstance(small.conv1, nn.Conv2d)
    assert small.conv1.out_channels < dense.conv1.out_channels
    kept = {n: int(t["weight"].flatten(1).any(1).sum()) for n, t in masks.items() if "conv" in n}
    fitting = [s for d, s, e in clock if 0.1 + 0.9 * count(s, e).macs / count(d, e).macs <= 0.6]
    # The masks are those of the largest model that was measured to fit.
    largest = max(fitting, key=lambda s: count(s, EXAMPLE).macs)
    assert kept == {n: largest.get_submodule(n).out_channels for n in kept}
    shares = [kept["stem"] / 16 if "stem" in kept else None, kept["conv1"] / 24]
    assert abs(shares[1] - int(masks["stem"]["weight"].flatten(1).any(1).sum()) / 16) < 0.2
    # The wrapped model is whole: nothing was cut in it.
    pruner.unwrap_model()
    assert net.conv1.weight.shape == (24, 16, 1, 1)


def test_the_same_widths_are_measured_once(clock):
    pruner = FPGMPruner(build(), CONVS, dummy_input=EXAMPLE, budget={"latency": 0.6})
    first = pruner.compress()[1]
    before = len(clock)
    second = pruner.compress()[1]
    assert len(clock) == before
    for name, targets in first.items():
        for target, mask in targets.items():
            assert mask is None or torch.equal(mask, second[name][target])


def test_out_of_reach_is_said_at_once_with_what_was_measured(clock):
    config = [{"op_types": ["Conv2d"], "max_sparse_ratio": 0.25}]
    said = (
        r"budget: latency of 0.300 of dense cannot be reached; with all removed that the "
        r"selected layers allow 0.[67]\d\d was measured on this machine"
    )
    with pytest.raises(BudgetError, match=said):
        FPGMPruner(build(), config, dummy_input=EXAMPLE, budget={"latency": 0.3})
    assert len(clock) == 1


def test_with_a_budget_of_parameters_both_hold(clock):
    net = build()
    budget = {"latency": 0.9, "params": 0.4}
    pruner = FPGMPruner(net, CONVS, dummy_input=EXAMPLE, budget=budget)
    pruner.compress()
    dense, small, _ = clock[-1]
    assert count(small, EXAMPLE).params <= 0.4 * count(dense, EXAMPLE).params
    assert count(small, EXAMPLE).params > 0.3 * count(dense, EXAMPLE).params


def test_the_whole_latency_removes_nothing(clock):
    masks = FPGMPruner(build(), CONVS, dummy_input=EXAMPLE, budget={"latency": 1.0}).compress()[1]
    assert all(bool(m.all()) for ts in masks.values() for m in ts.values() if m is not None)


def test_it_needs_an_input_and_a_fraction():
    with pytest.raises(ConfigError, match="budget: needs dummy_input="):
        FPGMPruner(build(), CONVS, budget={"latency": 0.5})
    with pytest.raises(ConfigError, match=r"budget\.latency: 5 is not a fraction"):
        FPGMPruner(build(), CONVS, dummy_input=EXAMPLE, budget={"latency": 5})


def test_both_models_are_really_timed_in_one_run(monkeypatch):
    """Each with norms folded and in two forms, the same work as the models themselves."""
    seen = {}

    def compare(models, example, *, batch_size):
        seen.update(models=dict(models), batch_size=batch_size)
        return real(models, example, batch_size=batch_size, min_runs=2, min_seconds=0.0)

    real = ratio.compare_latency
    monkeypatch.setattr(ratio, "compare_latency", compare)
    dense, small = build().eval(), build().eval()
    assert latency.measured_ratio(dense, small, {"x": EXAMPLE}) > 0
    assert seen["batch_size"] == 4
    forms = [f"{name}, {form}" for name in ("dense", "small") for form in FORMS]
    assert list(seen["models"]) == forms
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        for name, made in seen["models"].items():
            model = dense if name.startswith("dense") else small
            assert torch.allclose(made(x), model(x), atol=1e-4)


def test_the_quicker_form_of_each_counts(monkeypatch):
    times = {"dense, contiguous": 10.0, "dense, channels last": 8.0,
             "small, contiguous": 5.0, "small, channels last": 6.0}  # fmt: skip

    def compare(models, example, *, batch_size):
        del example, batch_size
        return SimpleNamespace(ratios={name: times[name] / 10 for name in models})

    monkeypatch.setattr(ratio, "compare_latency", compare)
    assert latency.measured_ratio(build(), build(), EXAMPLE) == pytest.approx(5 / 8)
