"""One trial from start to end: numbers, files, resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from processes import run as run_script
from safetensors.torch import load_file, save_file
from tiny_recipes import tiny
from torch import nn

from nni_gconv import compat
from nni_gconv.analysis import trial_sensitivity
from nni_gconv.artefact import load_compact, read_plan
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.profiling import count
from nni_gconv.recipe import Recipe, TrialResult, run_recipe
from nni_gconv.recipe.workbench import _threads
from nni_gconv.report import collect, plain_table
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.metrics import evaluate
from nni_gconv.training.zoo import create_model

HERE = Path(__file__).parents[1] / "helpers"
EXAMPLE = torch.zeros(1, 1, 8, 8)


def run(recipe, folder, **options):
    return run_recipe(recipe, output=folder, quiet=True, **options)


def dense():
    return create_model("resnet8", num_classes=10, in_channels=1, width=0.25)


def in_a_process(recipe, output, *options, processes=1):
    """Run a recipe in a process of its own, or in several."""
    file = output.parent / f"{output.name}.json"
    file.write_text(json.dumps(recipe))
    return run_script("recipe_process.py", file, output, *options, processes=processes)


def events(folder):
    """Tag and step of all that TensorBoard's files of a trial hold, what stands twice twice."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return sorted(
        (value.tag, event.step)
        for file in (folder / "tensorboard").iterdir()
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.suffix == ".safetensors"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished trial: its result and its folder."""
    folder = tmp_path_factory.mktemp("done")
    return run(tiny(), folder), folder


# -- numbers and files ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_numbers_are_those_of_the_files(done):
    result, folder = done
    small = load_compact(folder / "compact.safetensors", dense)
    big = dense()
    big.load_state_dict(load_file(folder / "dense.safetensors"))
    before, after = count(big, EXAMPLE), count(small, EXAMPLE)
    metrics = result.metrics
    assert (metrics["params"], metrics["macs"]) == (after.params, after.macs)
    assert result.dense == {"params": before.params, "macs": before.macs}
    assert 0.5 < metrics["macs_ratio"] == after.macs / before.macs <= 0.6
    assert metrics["params_ratio"] == after.params / before.params < 1
    settings = DataSettings(**tiny()["data"])
    loaders = make_loaders(load_data(settings, seed=0), settings, seed=0, device="cpu")
    cut = load_compact(folder / "speedup.safetensors", dense)
    for model, end in ((small, ""), (big, "_dense"), (cut, "_small"), (cut, "_masked")):
        for numbers, loader in ((metrics, loaders.val), (result.test, loaders.test)):
            found = evaluate(model, loader, device="cpu")
            assert found.accuracy == numbers[f"accuracy{end}"]
            assert found.top5 == numbers[f"top5{end}"]
    assert metrics["default"] == metrics["accuracy"]


def test_a_recipe_that_trains_nothing_is_measured_all_the_same(done, tmp_path):
    """One-shot: the network that is given is cut, and what it comes to is known on test images."""
    before, folder = done
    model = {**tiny()["model"], "weights": str(folder / "dense.safetensors")}
    result = run(tiny(model=model, train=None, finetune=None), tmp_path)
    assert list(result.stages) == ["prune", "speedup", "report"]
    for numbers, earlier in ((result.metrics, before.metrics), (result.test, before.test)):
        for name in ("accuracy", "top5"):
            assert numbers[f"{name}_dense"] == earlier[f"{name}_dense"]
            assert numbers[name] == numbers[f"{name}_small"] == earlier[f"{name}_small"]
            assert numbers[f"{name}_masked"] == earlier[f"{name}_masked"]


CRITERIA = ("magnitude", "lamp", "random", "activation", "taylor", "fisher", "hessian")


@pytest.mark.slow
@pytest.mark.parametrize("method", CRITERIA)
def test_a_criterion_chooses_and_what_is_left_is_refitted(done, tmp_path, method):
    """The masked network is measured before the weights that are left are fitted."""
    given = {
        "model": {**tiny()["model"], "weights": str(done[1] / "dense.safetensors")},
        "train": None,
        "finetune": None,
    }
    prune = {"method": method, "budget": {"macs": 0.6}, "options": {"ranking": "isomorphic"},
             "calibration": {"images": 96, "batch_size": 40}}  # fmt: skip
    cut = run(tiny(**given, prune=prune), tmp_path / "cut")
    fitted = run(tiny(**given, prune={**prune, "reconstruct": True}), tmp_path / "fitted")
    for one in (cut, fitted):
        assert 0.5 < one.metrics["macs_ratio"] <= 0.6
    for numbers, other in ((cut.metrics, fitted.metrics), (cut.test, fitted.test)):
        assert numbers["accuracy_masked"] == numbers["accuracy_small"] == other["accuracy_masked"]
        assert other["accuracy"] == other["accuracy_small"]
    small, refitted = (load_file(tmp_path / n / "compact.safetensors") for n in ("cut", "fitted"))
    assert any(not torch.equal(small[name], refitted[name]) for name in small)


@pytest.mark.parametrize("method", CRITERIA[3:])
def test_a_criterion_without_images_is_one_line_before_training(tmp_path, method):
    with pytest.raises(ConfigError, match=r"calibration: \w+ looks at images: .*prune\.calibrati"):
        run(tiny(prune={"method": method, "budget": {"macs": 0.6}}), tmp_path)
    assert not (tmp_path / "train").exists()


def test_few_classes_have_no_top_5(tmp_path):
    data = {"name": "synthetic", "num_classes": 4, "train_size": 80, "test_size": 24}
    result = run(tiny(data={**data, "image_size": 8}, finetune=None), tmp_path)
    ends = ["", "_dense", "_masked", "_small"]
    assert sorted(result.test) == sorted(f"accuracy{end}" for end in ends)
    assert not any(name.startswith("top5") for name in result.metrics)


def test_a_dense_recipe_has_no_accuracies_between(tmp_path):
    result = run(tiny(prune=None, finetune=None), tmp_path)
    assert sorted(result.test) == ["accuracy", "accuracy_dense", "top5", "top5_dense"]


def test_result_json_is_the_result(done):
    result, folder = done
    content = json.loads((folder / "result.json").read_text())
    assert content["format"] == 1
    assert TrialResult.from_dict(content, folder) == result
    assert content["recipe"]["train"]["epochs"] == 2
    assert list(content["stages"]) == ["train", "prune", "speedup", "finetune", "report"]
    assert content["stages"]["speedup"]["difference"] < 1e-9
    assert (content["method"], content["budget"], content["seed"]) == ("fpgm", {"macs": 0.6}, 0)
    assert read_plan(folder / "compact.safetensors")["recipe"] == content["recipe"]
    assert yaml.safe_load((folder / "recipe.yml").read_text()) == content["recipe"]


def test_no_temporary_file_is_left(done):
    left = [p.name for p in done[1].rglob("*") if p.name.startswith(".") and p.name != ".lock"]
    assert left == []


# -- resuming -------------------------------------------------------------------------------------


def test_finished_stages_are_not_run_again(done):
    result, folder = done
    files, stages = times(folder), (folder / "stages.json").read_bytes()
    again = run(tiny(), folder)
    assert again == result
    assert times(folder) == files
    assert (folder / "stages.json").read_bytes() == stages


@pytest.mark.slow
def test_what_is_missing_is_made_again_and_nothing_else(tmp_path):
    first = run(tiny(finetune=None), tmp_path)
    files = times(tmp_path)
    content = json.loads((tmp_path / "stages.json").read_text())
    del content["report"]
    (tmp_path / "stages.json").write_text(json.dumps(content))
    (tmp_path / "result.json").unlink()
    second = run(tiny(finetune=None), tmp_path)
    assert second.metrics == first.metrics
    assert times(tmp_path) == files
    assert (tmp_path / "result.json").is_file()


@pytest.mark.slow
def test_a_killed_trial_goes_on_and_ends_the_same(done, tmp_path):
    """Killed in the second epoch of training, and again in that of fine-tuning."""
    whole, folder = done
    cut = tmp_path / "cut"
    for stage in ("train", "finetune"):
        assert in_a_process(tiny(), cut, f"{stage}=7").code == -signal.SIGKILL
        assert (cut / stage / "checkpoint.pt").is_file()
        assert not (cut / "result.json").exists()
    assert "train" in json.loads((cut / "stages.json").read_text())
    result = run(tiny(), cut)
    assert result.metrics == whole.metrics
    assert result.test == whole.test
    for name in ("dense", "masks", "masked", "speedup", "compact"):
        ours = load_file(cut / f"{name}.safetensors")
        theirs = load_file(folder / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    found = events(cut)
    assert found == events(folder)
    assert len(set(found)) == len(found)  # nothing stands twice
    assert {("train/gamma/bn1", 1), ("finetune/filters/conv1", 2)} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["slimming", "shuffle"])
def test_a_killed_trial_ends_the_same_with_channels_last_in_memory(tmp_path, method):
    """Every stage that trains keeps weights so; what stages hand on has torch's own order."""
    last = {"epochs": 2, "channels_last": True}
    recipe = tiny(
        train={**last, "epochs": 1},
        sparsify=last,
        prune={"method": method, "budget": {"macs": 0.6}},
        finetune=last,
    )
    whole, cut = run(recipe, tmp_path / "whole"), tmp_path / "cut"
    for stage in ("sparsify", "finetune"):
        assert in_a_process(recipe, cut, f"{stage}=7").code == -signal.SIGKILL
    assert run(recipe, cut).metrics == whole.metrics
    for name in ("dense", "masks", "masked", "speedup", "compact"):
        ours, theirs = (load_file(tmp_path / d / f"{name}.safetensors") for d in ("cut", "whole"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


@pytest.mark.slow
def test_a_killed_trial_learns_from_the_same_teacher(tmp_path):
    """The dense network teaches while pruning and after it; a kill in each stage."""
    recipe = tiny(
        train={"epochs": 1},
        sparsify={"epochs": 2, "distill": {"temperature": 2, "weight": 0.5}},
        prune={"method": "slimming", "budget": {"macs": 0.6}},
        finetune={"epochs": 2, "distill": {}},
    )
    whole = run(recipe, tmp_path / "whole")
    cut = tmp_path / "cut"
    for stage in ("sparsify", "finetune"):
        assert in_a_process(recipe, cut, f"{stage}=7").code == -signal.SIGKILL
        assert (cut / stage / "checkpoint.pt").is_file()
    result = run(recipe, cut)
    assert result.metrics == whole.metrics
    assert result.test == whole.test
    for name in ("dense", "masked", "compact"):
        ours, theirs = (load_file(tmp_path / d / f"{name}.safetensors") for d in ("cut", "whole"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    plain = run({**recipe, "finetune": {"epochs": 2}}, tmp_path / "plain")
    other, small = (load_file(tmp_path / d / "compact.safetensors") for d in ("plain", "whole"))
    assert any(not torch.equal(other[key], small[key]) for key in small)
    assert plain.metrics["params"] == whole.metrics["params"]


def test_a_folder_of_another_recipe_is_refused(done):
    said = r"holds a run of another recipe \(train.epochs was 2, is 3\): choose another --output"
    with pytest.raises(ConfigError, match=said):
        run(tiny(), done[1], overrides={"train.epochs": 3})
    with pytest.raises(ConfigError, match=r"prune.budget.macs was 0.6, is 0.5"):
        run(tiny(), done[1], overrides={"prune.budget.macs": 0.5})


def test_what_an_earlier_version_did_not_know_is_no_difference(done, tmp_path):
    result, folder = done
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    file = before / "recipe.yml"
    content = yaml.safe_load(file.read_text())
    del content["finetune"]["channels_last"], content["objective"]
    file.write_text(yaml.safe_dump(content))
    assert run(tiny(), before).metrics == result.metrics


@pytest.mark.parametrize("where", ["prune.method", "model.name"])
def test_what_the_file_of_a_folder_names_is_not_imported(done, tmp_path, monkeypatch, where):
    mark, folder = tmp_path / "ran", tmp_path / "run"
    (tmp_path / "planted.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(done[1], folder)
    file = folder / "recipe.yml"
    content = yaml.safe_load(file.read_text())
    section, key = where.split(".")
    content[section][key] = "planted:Thing"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=f"{where} was 'planted:Thing'"):
        run(tiny(), folder)
    assert not mark.exists()


def test_another_device_or_number_of_threads_is_the_same_recipe(done):
    before = torch.get_num_threads()
    result = run(tiny(), done[1], overrides={"threads": before + 1})
    assert result.metrics == done[0].metrics
    assert torch.get_num_threads() == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="needs two cores")
def test_no_more_threads_than_a_container_allows(done, monkeypatch, capfd):
    """Torch knows of no such limit, and its threads would wait for each other."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_recipe(tiny(), output=done[1])
        assert "threads" not in capfd.readouterr().err  # the environment of tests says how many
        monkeypatch.delenv("OMP_NUM_THREADS")
        run_recipe(tiny(), output=done[1])
        assert "threads: 1, this trial's share of the cores (torch: 2)" in capfd.readouterr().err
        assert torch.get_num_threads() == 2
        run_recipe(tiny(), output=done[1], overrides={"threads": 2})
        assert "threads" not in capfd.readouterr().err
    finally:
        torch.set_num_threads(before)


def test_trials_that_run_together_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(compat, "usable_cores", lambda: 8)
    for trials, share in ((1, 8), (2, 4), (3, 2), (20, 1)):
        monkeypatch.setattr(compat, "trials_at_a_time", lambda trials=trials: trials)
        assert _threads(Recipe.model_validate(tiny()), 16) == share
        assert _threads(Recipe.model_validate(tiny()), 2) == min(2, share)
        assert _threads(Recipe.model_validate({**tiny(), "threads": 3}), 16) == 3


def test_no_resume_refuses_a_folder_that_holds_a_run(done):
    with pytest.raises(ConfigError, match="holds a run already: choose another --output"):
        run(tiny(), done[1], resume=False)


def test_two_processes_at_once_are_refused(done):
    with (
        FileLock(done[1] / ".lock"),
        pytest.raises(ConfigError, match="another process is running"),
    ):
        run(tiny(), done[1])


def test_damaged_files_are_named(tmp_path):
    run(tiny(train={"epochs": 0}, finetune=None), tmp_path)
    (tmp_path / "dense.safetensors").write_bytes(b"short")
    with pytest.raises(
        CheckpointError, match=r"dense.safetensors is damaged: it is not what stage train wrote"
    ):
        run(tiny(train={"epochs": 0}, finetune=None), tmp_path)
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"stages.json is damaged; delete it"):
        run(tiny(train={"epochs": 0}, finetune=None), tmp_path)
    (tmp_path / "recipe.yml").write_text("a: b: c")
    with pytest.raises(CheckpointError, match=r"recipe.yml is damaged"):
        run(tiny(train={"epochs": 0}, finetune=None), tmp_path)


# -- what is found before training ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"prune": {"method": "fpmg"}},
            r"prune.method: unknown method 'fpmg'; did you mean 'fpgm'",
        ),
        ({"prune": {"method": "nni:L1Norm"}}, r"unknown NNI pruner 'L1Norm'.*'L1NormPruner'"),
        (
            {"prune": {"method": "fpgm", "budget": {"macs": 0.5}, "options": {"norm": 1}}},
            r"prune.options: unknown option 'norm'; did you mean 'norm_ratio'",
        ),
        (
            {"prune": {"method": "fpgm", "config_list": [{"op_names": ["conv9"]}]}},
            r"config_list\[0\].op_names: 'conv9' matches no module",
        ),
        (
            {"prune": {"method": "fpgm", "budget": {"macs": 1e-6}}},
            r"budget: macs .* cannot be reached",
        ),
        ({"prune": {"method": "nni:TaylorPruner", "budget": {"macs": 0.5}}}, r"give it a sparsify"),
        (
            {"model": {"name": "resnet8", "options": {"in_channels": 3}}},
            r"does not run on digits images",
        ),
        (
            {"model": {"name": "resnet8", "num_classes": 4}},
            r"one number for each of the 10 classes",
        ),
        ({"device": "tpu"}, r"device: 'tpu' is not allowed"),
        ({"device": "meta"}, r"device: 'meta' is not allowed"),
        ({"device": "cuda:99"}, r"device: 'cuda:99' is not there"),
    ],
)
def test_what_is_wrong_is_found_before_training(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said) as caught:  # ConfigError or BudgetError
        run(tiny(**changes), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "stages.json").exists()
    assert not (tmp_path / "train").exists()


# -- sharing --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_recipes_that_share_train_once(tmp_path):
    train = {**tiny()["train"], "share": str(tmp_path / "shared")}
    first = run(tiny(train=train, finetune=None), tmp_path / "a")
    (weights,) = (tmp_path / "shared").rglob("dense.safetensors")
    before = weights.stat().st_mtime_ns
    budget = {"method": "fpgm", "budget": {"params": 0.5}}
    second = run(tiny(train=train, prune=budget, finetune=None), tmp_path / "b")
    assert weights.stat().st_mtime_ns == before
    assert second.metrics["accuracy_dense"] == first.metrics["accuracy_dense"]
    assert second.metrics["params_ratio"] <= 0.5
    assert not (tmp_path / "b" / "train").exists()
    # Another seed is another dense network.
    run(tiny(train=train, finetune=None, seed=1), tmp_path / "c")
    assert len(list((tmp_path / "shared").rglob("dense.safetensors"))) == 2


@pytest.mark.slow
def test_sharing_gives_the_numbers_of_training_alone(done, tmp_path):
    train = {**tiny()["train"], "share": str(tmp_path / "shared")}
    result = run(tiny(train=train), tmp_path / "a")
    assert result.metrics == done[0].metrics


# -- stages ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_scratch_forgets_the_weights(tmp_path):
    quick = {"train": {"epochs": 0}}
    run(tiny(**quick, finetune={"epochs": 0, "from_scratch": True}), tmp_path / "new")
    run(tiny(**quick, finetune={"epochs": 0}), tmp_path / "old")
    pruned = load_file(tmp_path / "new" / "speedup.safetensors")
    new = load_file(tmp_path / "new" / "compact.safetensors")
    old = load_file(tmp_path / "old" / "compact.safetensors")
    assert {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in pruned.items()}
    assert all(torch.equal(old[k], pruned[k]) for k in pruned)
    weights = [k for k in pruned if pruned[k].dim() == 4]
    assert weights
    assert not any(torch.equal(new[k], pruned[k]) for k in weights)


@pytest.mark.parametrize("rate", [1e-9, 3.0])
def test_a_network_that_gets_worse_is_told(done, tmp_path, capsys, rate):
    trained = str(done[1] / "compact.safetensors")
    changes = {
        "model": {**tiny()["model"], "weights": trained},
        "train": None,
        "finetune": {**tiny()["finetune"], "epochs": 1, "optimizer": {"name": "SGD", "lr": rate}},
    }
    result = run_recipe(tiny(**changes), output=tmp_path / "run")
    small = result.stages["speedup"]["accuracy"]["val"]["accuracy_small"]
    told = f"finetune: the network is worse than before, val accuracy {small:.4f} -> "
    worse = result.stages["finetune"]["val_accuracy"] < small
    assert (told in capsys.readouterr().err) == worse == (rate > 1)


@pytest.mark.slow
def test_weights_that_are_no_better_than_chance_are_told(tmp_path, capsys):
    """A head that says nothing, and classes in another order."""
    told = "validation images no better than chance: other classes, another order of them,"
    shared = {"data": {"name": "digits"}, "finetune": None}
    train = {"epochs": 5, "optimizer": {"lr": 0.1}}
    run_recipe(tiny(**shared, train=train), output=tmp_path / "own")
    trained = load_file(tmp_path / "own" / "dense.safetensors")
    head = next(name for name in reversed(trained) if name.endswith("weight"))
    bias = head.replace("weight", "bias")
    turned = {**trained, head: trained[head].roll(1, 0), bias: trained[bias].roll(1, 0)}
    blank = {**trained, head: torch.zeros_like(trained[head])}
    for number, (state, expected) in enumerate([(trained, 0), (turned, 1), (blank, 1)]):
        file = tmp_path / f"{number}.safetensors"
        save_file(state, file)
        model = {**tiny()["model"], "weights": str(file)}
        run_recipe(tiny(**shared, train=None, model=model), output=tmp_path / str(number))
        assert capsys.readouterr().err.count(told) == expected, number


@pytest.mark.slow
def test_validation_images_that_given_weights_have_seen_are_told(tmp_path, capsys):
    """Fifty classes of two noisy images each are learned by heart."""
    data = {"name": "synthetic", "num_classes": 50, "train_size": 100, "test_size": 200}
    train = {"epochs": 60, "optimizer": {"lr": 0.05}}
    shared = {"data": {**data, "image_size": 8, "val_fraction": 0.01}, "finetune": None}
    shared["model"] = {"name": "resnet8", "options": {"width": 0.5}}
    own = run_recipe(tiny(**shared, train=train), output=tmp_path / "own")
    assert not own.validation_seen
    assert "images: their training" not in capsys.readouterr().err
    weights = str(tmp_path / "own" / "dense.safetensors")
    shared["data"]["val_fraction"] = 0.5  # of what was nearly all trained on
    shared["model"]["weights"] = weights
    result = run_recipe(tiny(**shared, train=None), output=tmp_path / "given")
    val, test = result.metrics["accuracy_dense"], result.test["accuracy_dense"]
    told = f"weights: accuracy {val:.4f} on validation images, {test:.4f} on test images: their"
    assert told in capsys.readouterr().err
    assert val > 0.9 > 0.6 > test, (val, test)
    found, _ = trial_sensitivity(
        tiny(**shared, train=None), output=tmp_path / "curves", ratios=[0.0, 0.5]
    )
    assert told in capsys.readouterr().err
    assert found.dense.accuracy == val
    assert result.validation_seen
    rows = collect([tmp_path / "own", tmp_path / "given"])
    told = "has probably seen the validation images: compare by the test accuracy"
    assert told in plain_table(rows)
    assert told not in plain_table(rows[:1])


@pytest.mark.slow
def test_a_small_model_is_pruned_further(tmp_path):
    first = run(tiny(finetune=None), tmp_path / "channels")
    again = tiny(
        model={**tiny()["model"], "weights": str(tmp_path / "channels" / "compact.safetensors")},
        prune={"method": "gconv", "config_list": [{"op_types": ["Conv2d"], "num_groups": 2}]},
        train=None,
    )
    result = run(again, tmp_path / "groups")
    assert result.dense["macs"] == first.metrics["macs"]
    assert result.metrics["macs"] < first.metrics["macs"]
    assert run(again, tmp_path / "groups").metrics == result.metrics
    plan = read_plan(tmp_path / "groups" / "compact.safetensors")["plan"]
    groups = {layer["attrs"].get("groups") for layer in plan["modules"].values()}
    assert groups >= {1, 2}
    drawn = [tag for tag, _ in events(tmp_path / "groups") if tag.startswith("prune/kernel_norms/")]
    assert len(drawn) == sum(
        layer["attrs"].get("groups") == 2 for layer in plan["modules"].values()
    )


def test_a_pruner_of_nni_scores_while_it_trains(tmp_path):
    prune = {"method": "nni:TaylorPruner", "budget": {"macs": 0.6}}
    result = run(tiny(prune=prune, sparsify={"epochs": 1}, finetune=None), tmp_path)
    assert 0.5 < result.metrics["macs_ratio"] <= 0.6
    assert result.method == "nni:TaylorPruner"
    trained = load_file(tmp_path / "masked.safetensors")
    before = load_file(tmp_path / "dense.safetensors")
    assert not torch.equal(trained["conv1.weight"], before["conv1.weight"])


def test_a_method_that_does_not_train_is_trained_by_sparsify(tmp_path):
    prune = {"method": "nni:L1NormPruner", "budget": {"macs": 0.6}}
    run(tiny(train={"epochs": 0}, prune=prune, sparsify={"epochs": 1}, finetune=None), tmp_path)
    trained = load_file(tmp_path / "masked.safetensors")
    before = load_file(tmp_path / "dense.safetensors")
    assert not torch.equal(trained["conv1.weight"], before["conv1.weight"])


def test_a_dense_recipe_trains_and_measures(tmp_path):
    result = run(tiny(prune=None, finetune=None), tmp_path)
    assert result.method == "dense"
    assert result.budget is None
    assert result.metrics["macs_ratio"] == result.metrics["params_ratio"] == 1.0
    assert result.metrics["accuracy"] == result.metrics["accuracy_dense"]
    assert list(result.stages) == ["train", "report"]
    assert (tmp_path / "compact.safetensors").is_file()
    assert not (tmp_path / "masks.safetensors").exists()


def test_latency_and_objective(tmp_path):
    report = {"latency": {"batch_sizes": [2, 1], "min_runs": 2, "min_seconds": 0, "warmup": 0}}
    objective = {"accuracy": 1.0, "macs_ratio": -0.5, "latency_ratio": 0.25}
    recipe = tiny(train={"epochs": 0}, finetune=None, report=report, objective=objective)
    metrics = run(recipe, tmp_path).metrics
    expected = metrics["accuracy"] - 0.5 * metrics["macs_ratio"] + 0.25 * metrics["latency_ratio"]
    assert metrics["default"] == pytest.approx(expected)
    rows = json.loads((tmp_path / "result.json").read_text())["latency"]
    assert [row["batch_size"] for row in rows] == [2, 1]
    assert metrics["latency_ratio"] == rows[0]["ratio"] > 0
    for row in rows:
        assert row["small_ms"] == pytest.approx(row["dense_ms"] * row["ratio"])
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["reference"] == "dense"
    assert metrics["latency_ratio_low"] == rows[0]["low"]
    assert metrics["latency_ratio_high"] == rows[0]["high"]


@pytest.mark.slow
def test_exports_are_written_and_right(tmp_path):
    recipe = tiny(train={"epochs": 0}, finetune=None, export={"formats": ["onnx", "pt2"]})
    result = run(recipe, tmp_path)
    assert result.stages["export"]["files"] == {"onnx": "compact.onnx", "pt2": "compact.pt2"}
    small = load_compact(tmp_path / "compact.safetensors", dense)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = small(x)
        program = torch.export.load(tmp_path / "compact.pt2").module()
        assert torch.allclose(program(x), expected, atol=1e-4)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "compact.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


def test_a_user_s_model_and_its_weights(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_nets

    net: nn.Module = my_nets.small()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    model = {"name": "my_nets:small", "weights": str(tmp_path / "weights.pt")}
    result = run(tiny(model=model, train=None, finetune=None), tmp_path / "out")
    assert result.metrics["macs_ratio"] <= 0.6
    assert "train" not in result.stages


# -- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_one_trial_and_one_writes(tmp_path):
    output = tmp_path / "two"
    objective = {"accuracy": 1.0, "latency_ratio": 0.0}
    report = {"latency": {"batch_sizes": [1], "min_runs": 2, "min_seconds": 0}}
    recipe = tiny(report=report, objective=objective)
    done = in_a_process(recipe, output, processes=2)
    assert done.code == 0, done.said
    result = json.loads((output / "result.json").read_text())
    assert 0.5 < result["metrics"]["macs_ratio"] <= 0.6
    lines = [json.loads(line) for line in (output / "metrics.jsonl").open()]
    epochs = [(line["stage"], line["epoch"]) for line in lines]
    assert epochs == [("train", 1), ("train", 2), ("finetune", 1), ("finetune", 2)]
    small = load_compact(output / "compact.safetensors", dense)
    assert count(small, EXAMPLE).macs == result["metrics"]["macs"]


@pytest.mark.slow
def test_what_torchrun_cannot_do_is_said_by_every_process(tmp_path):
    train = {"epochs": 1, "share": str(tmp_path / "shared")}
    done = in_a_process(tiny(train=train), tmp_path / "two", processes=2)
    assert done.code != 0
    assert "train.share: cannot be used under torchrun" in done.said


@pytest.mark.slow
def test_keys_of_nni_2_run_with_a_note(tmp_path, caplog):
    """As in Python; the recipe that is kept says what was written."""
    old = [{"op_types": ["default"], "sparsity": 0.5}, {"op_types": ["Linear"], "exclude": True}]
    new = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    found = [
        run(
            tiny(finetune=None, prune={"method": "fpgm", "config_list": entries}),
            tmp_path / name,
        ).metrics["params"]
        for name, entries in (("old", old), ("new", new))
    ]
    assert found[0] == found[1]
    assert any("sparsity of NNI 2 is read as sparse_ratio" in line for line in caplog.messages)


@pytest.mark.parametrize("new_head", [False, True])
def test_a_dense_network_that_nothing_has_trained_is_no_measure(done, tmp_path, new_head):
    recipe = tiny(train=None, sparsify={"epochs": 1}, finetune=None)
    if new_head:  # its logits say nothing, whatever the layers before it have learned
        file = str(done[1] / "dense.safetensors")
        recipe["model"] = {**recipe["model"], "weights": {"file": file, "head": "new"}}
    result = run(recipe, tmp_path)
    for numbers in (result.metrics, result.test):
        assert "accuracy" in numbers
        assert not [name for name in numbers if name.endswith("_dense")]
    (row,) = collect([tmp_path])
    assert (row.accuracy_dense, row.delta) == (None, None)
    with pytest.raises(ConfigError, match="the dense network is not trained"):
        run({**recipe, "objective": {"accuracy": 1, "accuracy_dense": -1}}, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, {"mean": [0.4] * 3, "std": [0.3] * 3}])
def test_a_scale_of_pixels_that_published_weights_do_not_expect_is_told(tmp_path, capsys, given):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), tmp_path / "w.pth")
    published = {"file": str(tmp_path / "w.pth"), "mean": [0.5] * 3, "std": [0.25] * 3}
    data = {"name": "synthetic", "train_size": 60, "test_size": 20, "normalize": given}
    model = {
        "name": "timm:resnet10t",
        "weights": "pretrained",
        "options": {"pretrained_cfg_overlay": published},
    }
    recipe = tiny(data=data, model=model, train=None, finetune=None)
    run_recipe(recipe, output=tmp_path / "run")
    told = "data.normalize: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]} is theirs"
    assert (told in capsys.readouterr().err) == (given is None)
