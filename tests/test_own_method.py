"""A method of one's own: the page that shows one, and what a recipe says of its options."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from own_method import ToyPruner
from tiny_recipes import tiny
from torch import nn

from nni_gconv import register_pruner, run_recipe
from nni_gconv.errors import ConfigError, OptionError
from nni_gconv.pruning import ChannelPruner, create_pruner, method_names
from nni_gconv.pruning.registry import METHODS, find_method
from nni_gconv.recipe import load_recipe

PAGE = (Path(__file__).parents[1] / "docs" / "own_method.md").read_text(encoding="utf-8")
CONVS = [{"op_types": ["Conv2d"]}]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def energy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "energy.py").write_text(blocks("python")[0])
    yield tmp_path
    sys.modules.pop("energy", None)


@pytest.mark.slow
def test_the_page_runs(energy, capsys):
    method, use = blocks("python")
    assert len(method.splitlines()) < 40
    exec(compile(use, "own_method.md", "exec"), {})
    assert "Conv2d(3, 4" in capsys.readouterr().out
    recipe = yaml.safe_load(blocks("yaml")[0])
    result = run_recipe(recipe, output=energy / "run", quiet=True)
    assert 0.45 < result.metrics["macs_ratio"] <= 0.5
    recipe["prune"]["method"] = "energy"  # registered when its file was imported
    again = run_recipe(recipe, output=energy / "again", quiet=True)
    assert again.metrics == result.metrics


def recipe_of(method, **options):
    return tiny(prune={"method": method, "config_list": CONVS, "budget": {"macs": 0.5},
                       "options": options})  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("toy", {"pover": 1}, r"prune.options: unknown option 'pover'; did you mean 'power'\?"),
        ("toy", {"power": 0}, r"options.power: 0 is not allowed \(a number above 0, up to 8\)"),
        ("toy", {"coupling": "men"}, "options.coupling: unknown coupling 'men'; did you mean"),
        ("own_method:ToyPruner", {"power": 9}, r"prune.options.power: 9 is not allowed"),
        ("toi", {}, r"prune.method: unknown method 'toi'; did you mean 'toy'.*nni:L1NormPruner"),
        ("own_method:ToyPrune", {}, "did you mean 'ToyPruner'"),
        ("own_method:Field", {}, "prune.method: .* not a subclass of TrainedPruner"),
        ("fpgm", {"epoch_prune": 1.5}, r"epoch_prune: 1.5 is not allowed \(a whole"),
        ("fpgm", {"schedule": "cubik"}, "schedule.name: unknown schedule 'cubik'; did you mean"),
        ("fpgm", {"schedule": {"name": "linear", "ends": 3}}, "unknown key 'ends'; did you mean"),
        ("gconv", {"restart": 1}, "unknown option 'restart'; did you mean 'restarts'"),
        ("gconv", {"criterion": "l3"}, "unknown criterion 'l3'"),
        ("shuffle", {"decay": 2}, r"decay: 2 is not allowed \(a number from 0 to 1\)"),
        ("slimming", {"weigh_by": "flops"}, r"unknown cost 'flops' \(allowed: macs, params\)"),
        ("gsparsity", {"ramp": 0}, r"ramp: 0 is not allowed \(a number above 0, up to 1\)"),
        ("nni:L1NormPruner", {"p": 3}, r"unknown option 'p' \(allowed: coupling, schedule\)"),
        ("nni:SlimPruner", {"regular_scal": 1}, "did you mean 'regular_scale'"),
        ("nni:SlimPruner", {"regular_scale": -1}, r"regular_scale: -1 is not allowed"),
        ("nni:TaylorPruner", {"training_steps": 0}, r"training_steps: 0 is not allowed"),
        ("nni:TaylrPruner", {}, "unknown NNI pruner 'TaylrPruner'; did you mean 'TaylorPruner'"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_when_the_recipe_is_loaded(method, options, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(recipe_of(method, **options))
    assert "\n" not in str(caught.value)


def test_all_methods_are_named_where_one_is_unknown():
    with pytest.raises(ConfigError) as caught:
        find_method("nothing_like_it")
    assert all(name in str(caught.value) for name in method_names())
    assert {*METHODS, "toy", "nni:SlimPruner"} <= set(method_names())


def test_python_and_recipe_read_one_declaration():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    for name in method_names():
        kind = find_method(name).kind
        with pytest.raises(OptionError, match="unknown option 'scheduel'; did you mean 'schedule'"):
            kind(net, CONVS, scheduel="cubic")
    settings = load_recipe(recipe_of("toy", power=3)).prune
    pruner = create_pruner(settings, net, dummy_input=torch.zeros(1, 3, 8, 8))
    assert isinstance(pruner, ToyPruner)
    assert pruner.options.power == 3


def test_names_are_taken_once():
    with pytest.raises(ConfigError, match=r"'fpgm' is the name of .*FPGMPruner already"):
        register_pruner("fpgm")(ToyPruner)
    with pytest.raises(ConfigError, match="'toy' is the name of own_method:ToyPruner already"):
        register_pruner("toy")(ChannelPruner)
    with pytest.raises(ConfigError, match="is no pruner: derive it from"):
        register_pruner("net")(nn.Conv2d)
    with pytest.raises(ConfigError, match="letters, digits"):
        register_pruner("a:b")
    assert register_pruner("toy")(ToyPruner) is ToyPruner


def test_constructor_arguments_of_ones_own_are_options_too(monkeypatch):
    class Plain(ChannelPruner):
        def __init__(self, *args, times=1.0, **options):
            super().__init__(*args, **options)
            self.times = times

        def rank(self, filters):
            return self.times * filters[0].norm(dim=1)

    register_pruner("plain")(Plain)
    with pytest.raises(ConfigError, match="unknown option 'time'; did you mean 'times'"):
        load_recipe(recipe_of("plain", time=2.0))
    settings = load_recipe(recipe_of("plain", times=2.0)).prune
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert create_pruner(settings, net, dummy_input=torch.zeros(1, 3, 8, 8)).times == 2.0


def test_the_limits_of_every_coupled_layer_hold_under_a_budget():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1)
            self.head = nn.Conv2d(32, 4, 1)

        def forward(self, x):
            return self.head(self.c(self.a(x) + self.b(x)).relu())

    config = [*CONVS, {"op_names": ["b"], "min_channels": 6}]
    example = torch.zeros(1, 3, 8, 8)
    pruner = ToyPruner(Skip(), config, dummy_input=example, budget={"macs": 0.45})
    masks = pruner.compress()[1]
    assert int(masks["a"]["weight"].flatten(1).any(1).sum()) >= 6
