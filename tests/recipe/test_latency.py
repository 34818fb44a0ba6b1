"""A trial's milliseconds: what is timed, once for equal networks; the network in other forms."""

import json

import pytest
import torch
from tiny_recipes import tiny
from torch import nn

from nni_gconv import Recipe, load_compact, run_recipe
from nni_gconv.groupconv.forms import Form
from nni_gconv.inference import (
    FormPlan,
    LayerForm,
    Optimized,
    apply_forms,
    mark_optimized,
    origin_of,
)
from nni_gconv.profiling import LatencySettings, compare_latency
from nni_gconv.recipe import latency
from nni_gconv.training.zoo import create_model

QUICK = {"batch_sizes": [2, 1], "min_runs": 2, "min_seconds": 0, "warmup": 0, "max_seconds": 0}
GROUPS = {"method": "gconv", "config_list": [{"op_types": ["Conv2d"], "num_groups": 2}]}


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    recipe = tiny(
        train={"epochs": 0}, finetune=None, prune=GROUPS, export={"optimize": True},
        report={"latency": QUICK},
    )  # fmt: skip
    return recipe, folder, run_recipe(recipe, output=folder, quiet=True)


def architecture():
    return create_model("resnet8", num_classes=10, in_channels=1, width=0.25)


@pytest.mark.slow
def test_a_trial_leaves_the_network_in_its_quickest_form(trial):
    _, folder, result = trial
    stage = result.stages["optimize"]
    assert stage["difference"] < 1e-9
    assert stage["groups_paid"] in (True, False)
    assert stage["networks"][0]["name"] == "as it was"
    assert all(row["reference"].startswith("dense, norms folded") for row in result.latency)
    fast = load_compact(folder / "optimized.safetensors", architecture)
    small = load_compact(folder / "compact.safetensors", architecture)
    assert origin_of(small) is None
    assert origin_of(fast) is not None
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(fast(x), small(x), atol=1e-4)


@pytest.mark.slow
def test_what_is_finished_is_not_measured_again(trial, monkeypatch):
    recipe, folder, first = trial
    monkeypatch.setattr(latency, "find_forms", None)
    monkeypatch.setattr(latency, "compare_latency", None)
    again = run_recipe(recipe, output=folder, quiet=True)
    assert again.to_dict() == first.to_dict()


def nets():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3)), nn.Sequential(nn.Conv2d(1, 8, 3))


def test_equal_networks_are_timed_once(tmp_path):
    said = []

    def timed():  # three rounds may find either the slower one, which is said too
        return [line for line in said if line.startswith("timing")]

    settings = LatencySettings(**QUICK)
    cache = latency.TimingCache(tmp_path / "timings")
    x = torch.zeros(1, 1, 8, 8)

    def rows(small, dense):
        return latency.time_networks(small, dense, x, settings, cache, said.append)

    first = rows(*nets())
    assert len(timed()) == 2  # a line for each batch size
    for word in ("batch 2", "threads 1", "cpu", "up to 0 s"):
        assert word in timed()[0]
    small, dense = nets()
    nn.init.zeros_(small[0].weight)  # weights take no time
    assert rows(small, dense) == first
    assert len(timed()) == 2
    rows(nn.Sequential(nn.Conv2d(1, 5, 3)), dense)
    assert len(timed()) == 4
    (tmp_path / "timings" / "broken.json").write_text("{")
    for file in (tmp_path / "timings").glob("*.json"):
        file.write_text("{")
    rows(small, dense)
    assert len(timed()) == 6
    uncached = latency.TimingCache(None)
    latency.time_networks(small, dense, x, settings, uncached, said.append)
    assert len(timed()) == 8


def test_the_interval_and_the_milliseconds_fit_together(tmp_path):
    small, dense = nets()
    settings = LatencySettings(**{**QUICK, "min_runs": 7})
    given = torch.zeros(1, 1, 8, 8), settings, latency.TimingCache(None), lambda _: None
    for row in latency.time_networks(small, dense, *given):
        assert row["small_ms"] == pytest.approx(row["ratio"] * row["dense_ms"])
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["runs"] == 3  # the cap of 0 s leaves three
        json.dumps(row)


def test_a_small_network_that_is_slower_is_said_with_what_helps():
    """Fewer MACs can take longer; here the small one has many times as many."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, n, 3), nn.Conv2d(n, 4, 3)).eval() for n in (2, 64)]
    x, said = torch.zeros(1, 3, 32, 32), []
    settings = LatencySettings(batch_sizes=(8,), max_seconds=1.0)
    cache = latency.TimingCache(None)
    (row,) = latency.time_networks(nets[1], nets[0], x, settings, cache, said.append)
    assert row["low"] > 1
    assert f"eager, batch 8: the small network takes {row['ratio']:.2f} times as long" in said[-1]
    assert "round_to: 16" in said[-1]
    latency.time_networks(nets[0], nets[1], x, settings, cache, said.append)
    assert "timing the small network" in said[-1]


def test_a_network_that_runs_what_the_dense_one_runs_has_its_time(monkeypatch):
    """Groups that do not pay are dense layers again: in the reference's format, timed once."""
    timed = []

    def compare(models, *given, **more):
        timed.append(list(models))
        return compare_latency(models, *given, **more)

    monkeypatch.setattr(latency, "compare_latency", compare)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)).eval()
    settings = LatencySettings(**{**QUICK, "batch_sizes": [2]})
    given = settings, latency.TimingCache(None), lambda _: None
    x = torch.zeros(2, 1, 8, 8)
    last = latency._channels_last(dense, x, *given)
    layers = {n: LayerForm(Form("plain", 1), last) for n in ("0", "2")}
    plan = FormPlan(layers, {}, last)
    fast = mark_optimized(apply_forms(small, plan), Optimized(small, plan))
    (row,) = latency.time_networks(fast, dense, x[:1], *given)
    assert (row["ratio"], row["low"], row["high"]) == (1.0, 1.0, 1.0)
    assert row["small_ms"] == row["dense_ms"]
    # The format was looked for once, and the dense network alone was timed after that.
    assert timed == [["first", "last"], [row["reference"]]]


def test_a_budget_of_latency_is_of_the_quickest_forms():
    def optimizes(budget, **export):
        prune = {"method": "fpgm", "budget": budget}
        return Recipe(**tiny(prune=prune, export=export)).optimizes

    assert optimizes({"latency": 0.5})
    assert not optimizes({"macs": 0.5})
    assert optimizes({"macs": 0.5}, optimize=True)
    assert not optimizes({"latency": 0.5}, optimize=False)
