"""Histograms of scales and filter norms: what they hold, and that training does not notice."""

from __future__ import annotations

import pytest
import torch
from nni.compression.pruning import L1NormPruner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_nets import conv_net, same_weights, synthetic

from nni_gconv.training.logs.distributions import distributions
from nni_gconv.training.logs.metric_log import MetricLog
from nni_gconv.training.loop import fit
from nni_gconv.training.settings import TrainSettings


def events_of(folder):
    events = EventAccumulator(str(folder / "tensorboard"), {"histograms": 0, "scalars": 0})
    events.Reload()
    return events


def train(folder, log, epochs=3, **options):
    net = conv_net(dropout=0.3)
    settings = TrainSettings(epochs=epochs, optimizer={"lr": 0.05})
    fit(
        net, synthetic(), settings, directory=folder, device="cpu", seed=7, progress=False, log=log,
        **options,
    )  # fmt: skip
    return net


def test_the_values_are_those_of_the_layers():
    net = conv_net()
    found = distributions(net)
    convolutions = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)}
    norms = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert set(found) == {f"filters/{n}" for n in convolutions} | {f"gamma/{n}" for n in norms}
    for name, module in convolutions.items():
        expected = module.weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(found[f"filters/{name}"], expected.detach())
    for name, module in norms.items():
        assert torch.equal(found[f"gamma/{name}"], module.weight.detach().abs())


def test_a_wrapped_layer_shows_the_weight_that_is_trained():
    net = conv_net()
    before = distributions(net)
    pruner = L1NormPruner(net, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    pruner.compress()
    after = distributions(net)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_training_ends_with_the_same_bits_with_and_without(tmp_path):
    with MetricLog(tmp_path / "log", nni=False) as log:
        with_log = train(tmp_path / "a", log)
    without = train(tmp_path / "b", None)
    assert same_weights(with_log.state_dict(), without.state_dict())
    tags = events_of(tmp_path / "log").Tags()["histograms"]
    assert set(tags) == {f"train/{name}" for name in distributions(without)}


def test_the_last_histogram_is_of_the_last_weights(tmp_path):
    with MetricLog(tmp_path, nni=False) as log:
        net = train(tmp_path, log)
    events = events_of(tmp_path)
    for name, values in distributions(net).items():
        histograms = events.Histograms(f"train/{name}")
        assert [h.step for h in histograms] == [1, 2, 3]
        last = histograms[-1].histogram_value
        assert last.num == len(values)
        assert last.min == pytest.approx(float(values.min()), rel=1e-6)
        assert last.sum == pytest.approx(float(values.sum()), rel=1e-5)


@pytest.mark.slow
def test_a_long_stage_writes_some_epochs_and_the_last(tmp_path):
    with MetricLog(tmp_path, nni=False) as log:
        train(tmp_path, log, epochs=31)
    events = events_of(tmp_path)
    steps = [h.step for h in events.Histograms(events.Tags()["histograms"][0])]
    assert steps == [1, *range(2, 31, 2), 31]
    assert len(events.Scalars("train/loss")) == 31
