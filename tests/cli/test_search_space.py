"""``nni-gconv search-space``: the cost tables of a recipe as NNI's search space."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from commands import call

from nni_gconv import GroupConvPruner, ModelSpeedup
from nni_gconv.profiling import count
from nni_gconv.recipe.load import apply_overrides, load_recipe
from nni_gconv.training.zoo import create_model
from nni_gconv.tuning.options import Options

RECIPE = {
    "model": {"name": "resnet8", "options": {"width": 0.5}},
    "data": {"name": "digits", "train_size": 100},
    "train": {"epochs": 1},
    "prune": {"method": "gconv", "options": {"group_config": {}}},
}
KEY = "prune.options.group_config."


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


@pytest.mark.slow
def test_the_costs_are_those_of_the_network_that_a_trial_makes(capsys, recipe, tmp_path):
    path = tmp_path / "made" / "search_space.json"
    code, _, err = call(capsys, "search-space", recipe, "--output", path, "--min-factor", "2")
    assert code == 0, err
    assert "conv1 stays as it is" in err
    space = json.loads(path.read_text())
    assert space[KEY + "layer2.0.conv1"]["_value"] == [1, 2, 4]
    for measure in ("macs", "params"):
        options = Options.from_space(space, measure)
        choice = tuple(len(d.values) - 1 if i % 2 else 0 for i, d in enumerate(options.decisions))
        # As a trial takes it: dotted keys, taken apart at every dot.
        asked = load_recipe(apply_overrides(RECIPE, options.parameters(choice)))
        model, x = create_model("resnet8", in_channels=1, width=0.5), torch.zeros(1, 1, 8, 8)
        dense = count(model, x)
        pruner = GroupConvPruner(
            model, asked.prune.config_list, dummy_input=x, **asked.prune.options
        )
        _, masks = pruner.compress()
        pruner.unwrap_model()
        assert len(pruner.groups) == sum(1 for option in choice if option)
        small = count(ModelSpeedup(model, x, masks).speedup_model(), x)
        ratio = getattr(small, measure) / getattr(dense, measure)
        assert options.cost(choice) == pytest.approx(ratio, abs=1e-5)


def test_it_goes_to_standard_output_without_a_file(capsys, recipe):
    code, out, _ = call(capsys, "search-space", recipe, "--max-groups", "2")
    assert code == 0
    assert {len(spec["_value"]) for spec in json.loads(out).values()} == {2}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-o", "prune.method=fpgm", "-o", "prune.options={}"], "needs gconv, the recipe has fpgm"),
        (["-o", "prune=null"], "needs gconv, the recipe has nothing"),
        (["-o", "prune.budget.macs=0.5"], "prune.budget: leave it out"),
        (["--min-factor", "64"], "no layer has more than one group count"),
        (["-o", "model.name=resnet9"], "resnet9"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, recipe, args, words):
    code, out, err = call(capsys, "search-space", recipe, *args)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
