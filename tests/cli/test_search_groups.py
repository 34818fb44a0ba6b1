"""``nni-gconv search-groups``: the library's search, from the command line."""

from __future__ import annotations

import json

import pytest
import torch
from commands import call

from nni_gconv import search_groups
from nni_gconv.cli.networks.search_groups import parse_budgets
from nni_gconv.groupconv import read_group_config
from nni_gconv.training.zoo import create_model


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    torch.save(create_model("resnet8").state_dict(), tmp_path / "resnet8.pt")
    return str(tmp_path / "resnet8.pt")


def test_it_finds_what_the_library_finds(capsys, tmp_path, weights):
    path = tmp_path / "found" / "groups.json"
    code, out, err = call(
        capsys, "search-groups", "resnet8", "--weights", weights,
        "--budget", "params=0.5", "--budget", "macs=0.6",
        "--exclude", r"layer1\.", "--min-factor", "2", "--output", str(path), "--json",
    )  # fmt: skip
    assert code == 0
    assert f"saved {path}" in err
    model = create_model("resnet8", weights=weights)
    config_list = [{"op_types": ["Conv2d"], "exclude_op_names_re": [r"layer1\."]}]
    example, budget = torch.zeros(1, 3, 32, 32), {"params": 0.5, "macs": 0.6}
    expected = search_groups(model, example, config_list, budget, min_factor=2)
    found = json.loads(out)
    assert found == json.loads(json.dumps(expected.to_dict()))
    assert found["params_ratio"] <= 0.5
    assert found["macs_ratio"] <= 0.6
    assert read_group_config(path, model) == dict(expected)
    assert not any(name.startswith("layer1.") for name in expected)


def test_it_prints_a_table(capsys):
    code, out, err = call(
        capsys, "search-groups", "resnet8", "--budget", "macs=0.5", "--strategy", "max_cost"
    )
    assert code == 0
    assert "layer1.0.conv1" in out
    assert "max_cost: retained" in out
    assert err == "30 partitions done\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["resnet8"], "Missing option '--budget'"),
        (["resnet8", "--budget", "params"], "--budget params: expected a measure and a number"),
        (["resnet8", "--budget", "params=half"], "--budget params=half: expected a measure"),
        (["resnet8", "--budget", "param=0.5"], "did you mean 'params'"),
        (["resnet8", "--budget", "macs=0.5", "--budget", "macs=1"], "macs has a budget already"),
        (["resnet8", "--budget", "macs=0.01"], "macs of 0.010 of dense (122,394)"),
        (["resnet8", "--budget", "macs=0.5", "--strategy", "best"], "unknown strategy 'best'"),
        (["resnet8", "--budget", "macs=0.5", "--exclude", "laier"], "'laier' matches no module"),
        (["resnet8", "--budget", "macs=0.5", "--input", "1x5x8x8"], "to have 3 channels"),
        (["resnet9", "--budget", "macs=0.5"], "did you mean"),
        (["torch.nn:Identity", "--budget", "macs=0.5", "--input", "1x3x8x8"], "no convolution"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, args, words):
    code, out, err = call(capsys, "search-groups", *args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_nothing_is_saved_when_the_budget_is_out_of_reach(capsys, tmp_path):
    path = tmp_path / "groups.json"
    code, _, _ = call(
        capsys, "search-groups", "resnet8", "--budget", "macs=0.01", "--output", str(path)
    )
    assert code == 2
    assert not path.exists()


def test_budgets_are_read():
    assert parse_budgets(["params=.5", "macs=1e9", "latency=0.7"]) == {
        "params": 0.5,
        "macs": 1e9,
        "latency": 0.7,
    }
