"""The experiments that come with the package: their files, and one short run of each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from nni import NoMoreTrialError
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner

from nni_gconv.compat import flat_parameters
from nni_gconv.experiment import experiment_file, preflight
from nni_gconv.pruning.registry import CRITERIA, METHODS
from nni_gconv.recipe import load_recipe
from nni_gconv.tuning.options import Options
from nni_gconv.tuning.tables import recipe_space

NAMES = ("compare-methods", "group-search", "oneshot-search", "sensitivity")
ROOT = Path(__file__).parents[2]
#: Methods of the papers; criteria that only rank are compared elsewhere.
COMPARED = sorted(METHODS.keys() - CRITERIA.keys())


def space(name):
    return json.loads(experiment_file(name, "search_space.json").read_text())


def grid(name):
    tuner = GridSearchTuner()
    tuner.update_search_space(space(name))
    trials = []
    try:
        while True:
            trials.append(flat_parameters(tuner.generate_parameters(len(trials))))
    except NoMoreTrialError:
        return trials


@pytest.mark.slow
@pytest.mark.usefixtures("forked_probes")
@pytest.mark.parametrize("name", NAMES)
def test_they_pass_the_checks_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    plan = preflight(experiment_file(name), output=tmp_path)
    assert plan.config.trial_concurrency == 2
    assert plan.notes == ()
    folder = experiment_file(name).parent
    assert plan.config.training_service.trial_code_directory == str(folder)
    ignored = (folder / ".nniignore").read_text().split()
    assert {"*.md", "*.png"} <= set(ignored)
    page = (folder / "README.md").read_text()
    for picture in folder.glob("*.png"):
        assert picture.name in page
    assert list(folder.glob("*.png"))


def test_every_method_has_the_same_budgets_epochs_and_rates():
    trials = grid("compare-methods")
    recipes = [load_recipe(experiment_file("compare-methods", "recipe.yml"), t) for t in trials]
    methods = {r.prune.method for r in recipes}
    assert methods == {"second_order", *COMPARED, "nni:L1NormPruner"}
    asked = {
        m: sorted(
            (r.prune.budget["macs"], r.finetune.optimizer.lr)
            for r in recipes
            if r.prune.method == m
        )
        for m in methods
    }
    assert len({tuple(pairs) for pairs in asked.values()}) == 1
    assert len(next(iter(asked.values()))) == 4
    epochs = {r.finetune.epochs + (r.sparsify.epochs if r.sparsify else 0) for r in recipes}
    assert len(epochs) == 1
    plan = yaml.safe_load(experiment_file("compare-methods").read_text())
    assert plan["maxTrialNumber"] == len(trials)


def test_the_groups_of_the_search_are_those_of_the_recipe():
    made, _ = recipe_space(experiment_file("group-search", "recipe.yml"), min_factor=2)
    kept = space("group-search")
    for name, spec in made.items():
        for key in ("_value", "params", "macs"):
            assert kept[name][key] == spec[key]
    assert list(made) == list(kept)
    options = Options.from_space(kept)
    every = options.parameters(tuple(len(d.values) - 1 for d in options.decisions))
    recipe = load_recipe(experiment_file("group-search", "recipe.yml"), every)
    assert recipe.prune.options["group_config"]["layer3"]["2"]["conv2"] == 16


@pytest.mark.slow
def test_the_one_shot_search_trains_nothing_but_the_dense_network():
    assert space("oneshot-search") == space("group-search")  # the same network
    for recipe_file, space_file in (
        ("recipe.yml", "search_space.json"),
        ("channels_recipe.yml", "channels_space.json"),
    ):
        text = experiment_file("oneshot-search", space_file).read_text()
        last = {name: spec["_value"][-1] for name, spec in json.loads(text).items()}
        recipe = load_recipe(experiment_file("oneshot-search", recipe_file), last)
        assert recipe.sparsify is None
        assert recipe.finetune is None
        assert recipe.train.share == recipe.prune.calibration.share == "experiment"
        assert recipe.prune.reconstruction is not None
    channels = preflight(experiment_file("oneshot-search", "channels.yml"))
    assert channels.config.tuner.name == "TPE"


@pytest.mark.slow
def test_one_trial_measures_one_coupled_set():
    import torch

    from nni_gconv.pruning.methods.fpgm import FPGMPruner
    from nni_gconv.training.zoo import create_model

    trials = grid("sensitivity")
    recipe = load_recipe(experiment_file("sensitivity", "recipe.yml"))
    seen = []
    for parameters in trials:
        model = create_model("resnet20", in_channels=1, **recipe.model.options)
        entries = [{"op_names": parameters["prune.config_list.0.op_names"], "sparse_ratio": 0.5}]
        pruner = FPGMPruner(model, entries, dummy_input=torch.zeros(1, 1, 8, 8))
        (only,) = pruner.sets
        seen.append(frozenset(member.module for member in only.members))
        pruner.unwrap_model()
    every = FPGMPruner(
        create_model("resnet20", in_channels=1, **recipe.model.options),
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}],
        dummy_input=torch.zeros(1, 1, 8, 8),
    )
    assert set(seen) == {frozenset(m.module for m in s.members) for s in every.sets}
    assert len(seen) == len(set(seen))


def shortened(name, folder, trials, epochs):
    """Copy an experiment with fewer trials and epochs, and nothing else changed."""
    shutil.copytree(experiment_file(name).parent, folder / name)
    file = folder / name / "experiment.yml"
    plan = yaml.safe_load(file.read_text())
    plan["maxTrialNumber"] = trials
    file.write_text(yaml.safe_dump(plan))
    recipe = folder / name / "recipe.yml"
    data = yaml.safe_load(recipe.read_text())
    for stage in ("train", "finetune"):
        if stage in data:
            data[stage]["epochs"] = epochs
    recipe.write_text(yaml.safe_dump(data))
    return file


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(("name", "trials"), [("group-search", 2), ("sensitivity", 2)])
def test_a_short_run_reaches_its_end(workshop, name, trials):
    file = shortened(name, workshop.folder, trials, epochs=2)
    finished = workshop.run("create", str(file), "--json", timeout=450)
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)
    assert [row["status"] for row in rows] == ["succeeded"] * trials
    (folder,) = workshop.experiments
    if name == "group-search":
        state = json.loads((folder / "checkpoint" / "pareto.json").read_text())
        assert len(state["trials"]) == trials
        for row in rows:
            options = Options.from_space(space(name))
            expected = options.cost(options.choice(row["parameters"]))
            # Groups that layers share cost what the tables say.
            assert row["macs_ratio"] == pytest.approx(expected, abs=1e-4)
    else:
        environment = {**workshop.env, "PYTHONPATH": str(ROOT) + os.pathsep}
        joined = subprocess.run(
            [sys.executable, "-m", "nni_gconv", "sensitivity", folder.name, "--json"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert len(json.loads(joined.stdout)["sets"]) == trials
        assert (folder / "report" / "curves.png").is_file()
