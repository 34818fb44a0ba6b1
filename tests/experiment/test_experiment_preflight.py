import contextlib
import json
import socket
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from nni import NoMoreTrialError
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner

from nni_gconv.compat import flat_parameters
from nni_gconv.errors import ConfigError
from nni_gconv.experiment import experiment_file, experiment_names, preflight, resume
from nni_gconv.experiment.checks import as_json, threads

from .conftest import BASE

pytestmark = pytest.mark.usefixtures("forked_probes")

RECIPE = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits"},
    "train": {"epochs": 1},
    "prune": {
        "method": "fpgm",
        "budget": {"macs": 0.5},
        "config_list": [{"op_types": ["Conv2d"]}],
    },
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "stand_in_trial.py").touch()

    def write(**changes):
        data = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
        file = tmp_path / "experiment.yml"
        file.write_text(yaml.safe_dump(data))
        return file

    return write


def test_a_good_file_gives_a_plan(write, tmp_path):
    plan = preflight(write(maxTrialNumber=2), concurrency=3, output=tmp_path / "out")
    assert plan.config.trial_concurrency == 3
    assert plan.folder == tmp_path / "out"
    assert plan.config.training_service.trial_code_directory == str(tmp_path)
    assert plan.max_trials == 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", plan.port))


@pytest.mark.slow
def test_the_size_of_a_grid_is_known(write):
    space = {"a": BASE["searchSpace"]["x"], "b": {"_type": "choice", "_value": [1, 2]}}
    assert preflight(write(searchSpace=space)).max_trials == 6
    ours = {"className": "nni_gconv.tuner.GridSearch", "codeDirectory": "."}
    plan = preflight(write(searchSpace=space, tuner=ours))
    assert (plan.max_trials, plan.varied) == (6, {"a", "b"})
    assert not any("until Ctrl-C" in note for note in plan.notes)
    space["c"] = {"_type": "uniform", "_value": [0, 1]}
    assert preflight(write(searchSpace=space)).max_trials is None


def test_keys_may_be_written_as_nni_takes_them(write):
    plan = preflight(write(trialConcurrency=None, trial_concurrency=2), concurrency=4)
    assert plan.config.trial_concurrency == 4


def own(class_name, **class_args):
    return {"className": class_name, "codeDirectory": ".", "classArgs": class_args}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trialComand": "x"}, ["unknown key 'trialComand'", "did you mean 'trialCommand'"]),
        ({"searchSpace": None}, ["search space is not set"]),
        ({"searchSpaceFile": "no.json", "searchSpace": None}, ["no such file", "no.json"]),
        ({"trialGpuNumber": 1}, ["trialGpuNumber", "trialConcurrency"]),
        (
            {"trainingService": {"platform": "local", "trialGpuNumber": 1}},
            ["trainingService.trialGpuNumber"],
        ),
        ({"trialConcurrency": None}, ["trialConcurrency is not set"]),
        ({"trialConcurrency": "two"}, ["trialConcurrency", "'two'", "int"]),
        ({"trialConcurrency": 0}, ["trialConcurrency > 0 does not hold"]),
        ({"trialCommand": None}, ["trialCommand is not set"]),
        ({"trialCommand": "pythn trial.py"}, ["no program 'pythn'"]),
        ({"trialCommand": "nni-gconv run nowhere.yml"}, ["no such recipe", "nowhere.yml"]),
        ({"trialCommand": "python 'trial.py"}, ["trialCommand", "quotation"]),
        ({"trialCodeDirectory": "nowhere"}, ["trialCodeDirectory", "nowhere"]),
        ({"tuner": None}, ["tuner is not set"]),
        ({"tuner": {"name": "GridSerch"}}, ["tuner.name", "did you mean 'GridSearch'"]),
        ({"tuner": {"nam": "GridSearch"}}, ["unknown key nam"]),
        ({"tuner": {"className": "a.B", "codeDirectory": "no"}}, ["codeDirectory", "no"]),
        ({"tuner": {"className": "nni_gconv.tuner.ParetoTuner"}}, ["codeDirectory is not set"]),
        ({"tuner": own("nni_gconv.tuner.ParetTuner")}, ["no class", "did you mean 'ParetoTuner'"]),
        ({"tuner": own("nni_gconv.tuners.ParetoTuner")}, ["no module 'nni_gconv.tuners'"]),
        ({"tuner": own("ParetoTuner")}, ["write MODULE.CLASS"]),
        ({"tuner": own("json.JSONDecoder")}, ["no subclass of nni.tuner.Tuner"]),
        ({"tuner": own("nni_gconv.tuner.ParetoTuner", sed=1)}, ["'sed'", "did you mean 'seed'"]),
        ({"tuner": own("nni_gconv.tuner.ParetoTuner", low=2)}, ["classArgs.low: 2"]),
        ({"tuner": own("nni_gconv.tuner.ParetoTuner")}, ["no key has a list 'macs'"]),
        ({"tuner": {"name": "Hyperband"}}, ["className: nni_gconv.tuner.Hyperband"]),
        ({"assessor": own("nni_gconv.tuner.TPE")}, ["no subclass of nni.assessor.Assessor"]),
        ({"assessor": {"name": "Medianstopp"}}, ["assessor.name", "Medianstop"]),
        ({"trainingService": None}, ["trainingService is not set"]),
        ({"trainingService": {"platform": "locl"}}, ["did you mean 'local'"]),
        ({"trainingService": {"platform": "local", "gpus": 1}}, ["unknown key gpus"]),
        ({"trainingServicePlatform": "local"}, ["trainingServicePlatform", "NNI 1"]),
        ({"searchSpace": {"x": [1, 2]}}, ["'x'", "_type and _value"]),
        ({"searchSpace": {"x": {"_type": "choise", "_value": [1]}}}, ["did you mean 'choice'"]),
        ({"searchSpace": {"x": {"_type": "choice", "_value": 1}}}, ["must be a list"]),
        ({"searchSpace": {"x": {"_type": "uniform", "_value": [1]}}}, ["takes 2 numbers"]),
        ({"maxExperimentDuration": "1y"}, ["Bad unit", "1y"]),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(write, changes, words):
    file = write(**changes)
    with pytest.raises(ConfigError) as caught:
        preflight(file)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(file))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("nni-gconv run own.yml -o prune.methd=fpgm", ["prune.methd", "did you mean 'method'"]),
        ("nni-gconv run own.yml --override=prune.method=fpgn && true", ["'fpgn'", "'fpgm'"]),
        ("nni-gconv run own.yml -oprune", ["-o prune: expected dotted.key=value"]),
        ("nni-gconv run own.yml", ["own.yml: model.weights: no file", "nearest: dens.safetensors"]),
        ("nni-gconv run own.yml -o prune.method=own:Method", []),  # imported by trials alone
        ("nni-gconv run own.yml -o model.weights=DEFAULT", []),  # a name: asked when it is built
        ("nni-gconv run own.yml -o model.weights=weights/dens.safetensors", []),
        ("nni-gconv run own.yml -o model.weights=$WEIGHTS", []),  # known to the shell alone
    ],
)
def test_a_recipe_that_no_trial_could_load_is_refused(write, tmp_path, command, words):
    model = {"name": "resnet20", "weights": "weights/dense.safetensors"}
    (tmp_path / "own.yml").write_text(yaml.safe_dump({**RECIPE, "model": model}))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "dens.safetensors").touch()
    file = write(trialCommand=command)
    if not words:
        assert preflight(file)
        return
    with pytest.raises(ConfigError) as caught:
        preflight(file)
    assert str(caught.value).startswith(str(file))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_weights_that_the_tuner_chooses_are_its_own(write, tmp_path):
    model = {"name": "resnet20", "weights": "none.pt"}
    (tmp_path / "own.yml").write_text(yaml.safe_dump({**RECIPE, "model": model}))
    space = {"model.weights": {"_type": "choice", "_value": ["a.pt", "b.pt"]}}
    assert preflight(write(trialCommand="nni-gconv run own.yml", searchSpace=space))


def test_one_mistake_does_not_spoil_the_next_file(write):
    # NNI remembers the folder of a file whose reading failed, and then asserts.
    with pytest.raises(ConfigError):
        preflight(write(tuner={"nam": 1}))
    preflight(write())


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "", "\ta: 1"])
def test_what_is_no_mapping_is_said(tmp_path, text):
    file = tmp_path / "experiment.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"YAML|mapping") as caught:
        preflight(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        preflight(tmp_path / "no.yml")
    with pytest.raises(ConfigError, match="is a folder"):
        preflight(tmp_path)


def test_a_port_in_use_is_refused(write):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(ConfigError, match="another program uses it"):
            preflight(write(), port=server.getsockname()[1])
    with pytest.raises(ConfigError, match="between 1 and 65535"):
        preflight(write(), port=70000)


def test_machines_elsewhere_need_a_tunnel_or_a_word(write, tmp_path):
    key = tmp_path / "key"
    key.touch()
    machine = {"host": "10.0.0.2", "user": "me", "sshKeyFile": str(key)}
    service = {"platform": "remote", "machineList": [machine]}
    with pytest.raises(ConfigError, match=r"nniManagerIp: 10\.0\.0\.1: .*SSH tunnels"):
        preflight(write(trainingService=service, nniManagerIp="10.0.0.1"))
    plan = preflight(write(trainingService=service))
    assert plan.config.training_service.nni_manager_ip == "127.0.0.1"
    assert [one.label for one in plan.machines] == ["me@10.0.0.2"]
    preflight(write(trainingService=service, nniManagerIp="127.0.0.1"))
    assert not preflight(
        write(trainingService=service, nniManagerIp="10.0.0.1"), loopback=False
    ).loopback


def test_hybrid_is_this_machine_and_one_list_of_others(write, tmp_path):
    key = tmp_path / "key"
    key.touch()
    machine = {"host": "10.0.0.2", "user": "me", "sshKeyFile": str(key)}
    remote = {"platform": "remote", "machineList": [machine]}
    plan = preflight(write(trainingService=[{"platform": "local"}, remote]))
    assert plan.machines[0].place == ("trainingService", 1, "machineList", 0)
    with pytest.raises(ConfigError, match="remote stands there 2 times"):
        preflight(write(trainingService=[remote, remote]))


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"user": "me"}, r"machineList\[0\]\.host is not set"),
        ({"host": "h"}, r"machineList\[0\]\.user is not set"),
        ({"host": "h", "user": "me", "sshKeyFile": "/no/key"}, r"sshKeyFile: no such file: /no"),
        ("gpu1", r"machineList\[0\]: expected host, user"),
    ],
)
def test_a_machine_that_cannot_be_used_is_named(write, machine, words):
    service = {"platform": "remote", "machineList": [machine]}
    with pytest.raises(ConfigError, match=words):
        preflight(write(trainingService=service))


def test_a_password_in_the_file_is_noted(write):
    machine = {"host": "10.0.0.2", "user": "me", "password": "secret"}
    service = {"platform": "remote", "machineList": [machine]}
    (words,) = preflight(write(trainingService=service)).notes
    assert words.startswith("trainingService.machineList[0].password: ")
    assert "serves it without login" in words
    assert "secret" not in words


def test_the_kubeflow_file_is_what_nni_takes(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    file = experiment_file("kubeflow")
    assert preflight(file, loopback=False).config.training_service.platform == "kubeflow"
    with pytest.raises(ConfigError, match="--all-interfaces"):
        preflight(file)


@pytest.fixture
def four_gpus(monkeypatch, tmp_path):
    """A driver of our own that reports four GPUs, and a recipe that wants one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fake_nvml"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("FAKE_GPUS", "4")

    def recipe(**changes):
        (tmp_path / "recipe.yml").write_text(yaml.safe_dump({**RECIPE, **changes}))
        return "nni-gconv run recipe.yml"

    yield recipe
    sys.modules.pop("pynvml", None)


@pytest.mark.parametrize(
    ("recipe", "concurrency", "words"),
    [
        ({}, 4, None),
        ({}, 2, "some stay idle"),
        ({}, 6, "wait for a free one"),
        ({"gpus": 2}, 2, None),
        ({"gpus": 2}, 4, "room for 2 at a time: the others wait"),
        ({"device": "cpu"}, 9, None),
        ({"device": "cuda:1"}, 9, None),
    ],
)
def test_trials_at_a_time_are_compared_with_the_gpus(write, four_gpus, recipe, concurrency, words):
    plan = preflight(write(trialCommand=four_gpus(**recipe), trialConcurrency=concurrency))
    assert len(plan.notes) == (words is not None)
    if words is not None:
        assert words in plan.notes[0]


@pytest.mark.parametrize(
    ("recipe", "given", "trials", "told"),
    [
        ({"threads": 4}, "", 2, False),
        ({"threads": 8}, "", 2, True),
        ({"threads": 8}, "", 1, False),
        ({"threads": 4}, " -o threads=1", 8, False),
        ({"threads": 1}, "", 16, False),
        ({"threads": 4}, " -o threads=8", 2, True),
        ({"threads": 8}, " -o threads=null", 2, False),
        ({}, "", 2, False),
    ],
)
def test_more_threads_than_cores_are_told(
    write, recipe, given, trials, told, tmp_path, monkeypatch
):
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    (tmp_path / "recipe.yml").write_text(json.dumps({**RECIPE, "device": "cpu", **recipe}))
    command = f"nni-gconv run recipe.yml{given}"
    changes = {"trialCommand": command, "trialConcurrency": trials}
    notes = preflight(write(**changes)).notes
    assert len(notes) == told
    if told:
        assert f"trialConcurrency: {trials} with threads: 8 each is more than 8 cores" in notes[0]
        space = {"threads": {"_type": "choice", "_value": [1, 2]}}
        assert preflight(write(**changes, searchSpace=space)).notes == ()


def test_gpus_of_the_command_line_make_the_concurrency(write, four_gpus):
    file = write(trialCommand=four_gpus(), trialConcurrency=1)
    assert preflight(file, gpus=1).config.trial_concurrency == 4
    plan = preflight(file, gpus=2)
    assert plan.config.trial_concurrency == 2
    assert plan.config.training_service.trial_command.startswith("NNI_GCONV_GPUS=2 nni-gconv")
    assert preflight(file, gpus=2, concurrency=1).config.trial_concurrency == 1
    with pytest.raises(ConfigError, match="--gpus 5: this machine has 4 GPUs"):
        preflight(file, gpus=5)


def test_a_machine_without_gpus_is_told_at_once(write, four_gpus, monkeypatch):
    monkeypatch.delenv("FAKE_GPUS")
    file = write(trialCommand=four_gpus())
    assert "no GPU on this machine (no NVIDIA driver" in preflight(file).notes[0]
    with pytest.raises(ConfigError, match="--gpus 1: this machine has no GPU"):
        preflight(file, gpus=1)
    with pytest.raises(ConfigError, match=r"device: cuda in the recipe.*no GPU"):
        preflight(write(trialCommand=four_gpus(device="cuda")))


def test_a_search_without_an_end_is_noted(write):
    assert "until Ctrl-C" in preflight(write(tuner={"name": "TPE"})).notes[0]
    assert preflight(write(tuner={"name": "TPE"}, maxTrialNumber=3)).notes == ()


@pytest.mark.slow
def test_a_tuner_of_the_user_s_is_loaded_as_nni_will(write, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\nfrom nni.tuner import Tuner\nprint('hello')\n"
        "class Mine(Tuner):\n    def __init__(self, need, more=0): pass\n"
    )
    preflight(write(tuner=own("mine.Mine", need=1)))
    with pytest.raises(ConfigError, match="'need' is needed"):
        preflight(write(tuner=own("mine.Mine")))
    (tmp_path / "mine.py").write_text("import nowhere.near\n")
    with pytest.raises(ConfigError, match="it needs 'nowhere', which is not installed"):
        preflight(write(tuner=own("mine.Mine")))
    (tmp_path / "mine.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(ConfigError, match="ended the process"):
        preflight(write(tuner=own("mine.Mine")))


def test_what_nni_s_own_are_known_to_do_is_noted(write):
    notes = preflight(
        write(tuner={"name": "TPE"}, assessor={"name": "Medianstop"}, maxTrialNumber=3)
    ).notes
    assert "nni_gconv.tuner.TPE" in notes[0]
    assert "scipy" in preflight(write(tuner={"name": "GPTuner"}, maxTrialNumber=3)).notes[0]


def test_the_experiments_that_come_with_the_package_pass(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    assert "quickstart" in experiment_names()
    plan = preflight(experiment_file("quickstart"), output=tmp_path)
    assert plan.max_trials >= 6
    assert plan.config.trial_concurrency == 2


def grid(space):
    """What NNI's own grid search makes of a search space, as a trial gets it."""
    tuner = GridSearchTuner()
    tuner.update_search_space(space)
    trials = []
    try:
        while True:
            trials.append(flat_parameters(tuner.generate_parameters(len(trials))))
    except NoMoreTrialError:
        return trials


def test_the_quickstart_recipe_takes_every_choice_of_its_search_space(tmp_path):
    from nni_gconv.pruning.registry import CRITERIA, METHODS
    from nni_gconv.recipe import load_recipe

    compared = METHODS.keys() - CRITERIA.keys()

    space = json.loads(experiment_file("quickstart", "search_space.json").read_text())
    trials = grid(space)
    plan = preflight(experiment_file("quickstart"), output=tmp_path)
    assert plan.max_trials == len(trials)
    assert plan.varied == {"prune.method", "prune.budget.macs"}
    recipes = [load_recipe(experiment_file("quickstart", "recipe.yml"), t) for t in trials]
    assert {r.prune.method for r in recipes} == {*compared, "second_order", "nni:L1NormPruner"}
    assert {r.train.share for r in recipes} == {"experiment"}
    # Every method trains for as long, and is asked for the same budgets.
    epochs = {r.finetune.epochs + (r.sparsify.epochs if r.sparsify else 0) for r in recipes}
    assert len(epochs) == 1
    budgets = {m: [] for m in (r.prune.method for r in recipes)}
    for recipe in recipes:
        budgets[recipe.prune.method].append(recipe.prune.budget["macs"])
    assert len({tuple(b) for b in budgets.values()}) == 1


@pytest.mark.parametrize(
    "space",
    [
        {"a": [1, 2], "b": [1]},
        {"a": [{"_name": "x"}, {"_name": "y", "c": [1, 2, 3], "d": [1, 2]}], "b": [1, 2]},
        {"a": [{"_name": "x", "c": [{"_name": "u", "d": [1, 2]}, {"_name": "v"}]}]},
    ],
)
def test_a_grid_is_as_large_as_nni_makes_it(write, space):
    spaces = choices(space)
    trials = grid(spaces)
    assert preflight(write(searchSpace=spaces)).max_trials == len(trials)
    assert not any(isinstance(value, dict) for trial in trials for value in trial.values())


def choices(space):
    """Write lists as NNI's choices."""
    if isinstance(space, dict):
        return {k: v if k == "_name" else choices(v) for k, v in space.items()}
    values = [choices(value) if isinstance(value, dict) else value for value in space]
    return {"_type": "choice", "_value": values}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"a": [{"_name": "x"}, 3]}, "either every choice has a _name or none"),
        ({"a": [{"_name": "x", "b": 3}]}, "'x': 'b': must have _type and _value"),
        ({"a": [{"_name": "x", "b": {"_type": "chose", "_value": [1]}}]}, "did you mean 'choice'"),
    ],
)
def test_what_is_wrong_inside_a_choice_is_said(write, space, words):
    spec = {key: {"_type": "choice", "_value": value} for key, value in space.items()}
    with pytest.raises(ConfigError, match=words):
        preflight(write(searchSpace=spec))


def test_an_unknown_experiment_names_those_there_are():
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        experiment_file("quikstart")
    with pytest.raises(ConfigError, match=r"recipe\.yml"):
        experiment_file("quickstart", "recip.yml")


@pytest.mark.slow
def test_a_configuration_made_in_python_is_checked_like_a_file(tmp_path, monkeypatch):
    from nni.experiment import Experiment

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.py").write_text("")
    config = Experiment("local").config
    config.trial_command = "python trial.py"
    config.search_space = BASE["searchSpace"]
    config.trial_concurrency = 2
    with pytest.raises(ConfigError, match="tuner is not set"):
        preflight(config)
    config.tuner.name = "TPE"
    config.tuner.class_args = {"optimize_mode": "minimize"}
    config.max_trial_number = 5
    plan = preflight(config, concurrency=3)
    assert (plan.config.trial_concurrency, plan.max_trials, plan.minimize) == (3, 5, True)
    assert plan.config.training_service.trial_code_directory == str(tmp_path)
    config.training_service.trial_gpu_number = 1
    with pytest.raises(ConfigError, match="GPU scheduler"):
        preflight(config)


def test_values_of_the_recipe_and_a_number_of_trials_from_the_command(tmp_path):
    file = experiment_file("quickstart")
    plan = preflight(file, max_trials=3, overrides=["train.epochs=1", "name=two words"])
    assert plan.config.max_trial_number == 3
    assert plan.config.trial_command == (
        "nni-gconv run recipe.yml -o train.epochs=1 -o 'name=two words'"
    )
    other = tmp_path / "experiment.yml"
    other.write_text(
        "trialCommand: python trial.py\ntrialConcurrency: 1\nmaxTrialNumber: 1\n"
        "searchSpace: {a: {_type: choice, _value: [1]}}\ntuner: {name: Random}\n"
        "trainingService: {platform: local}\n"
    )
    (tmp_path / "trial.py").touch()
    with pytest.raises(ConfigError, match="-o: the trial command is not 'nni-gconv run RECIPE'"):
        preflight(other, overrides=["a=1"])


def test_the_quickstart_with_seeds_is_every_trial_for_each(tmp_path):
    from nni_gconv.experiment import with_seeds
    from nni_gconv.recipe import load_recipe

    file = with_seeds(experiment_file("quickstart"), tmp_path / "three", 3)
    plan = preflight(file, output=tmp_path / "kept")
    assert plan.notes == preflight(experiment_file("quickstart"), output=tmp_path / "kept").notes
    trials = grid(json.loads((file.parent / "search_space.json").read_text()))
    assert sorted(trial["seed"] for trial in trials) == sorted([0, 1, 2] * 14)
    assert yaml.safe_load(file.read_text())["maxTrialNumber"] == 42
    for trial in trials:
        assert load_recipe(file.parent / "recipe.yml", trial).seed == trial["seed"]
    assert with_seeds(experiment_file("quickstart"), file.parent, 3) == file  # the same again
    recipe = file.parent / "recipe.yml"
    recipe.write_text("mine: 1")
    with pytest.raises(ConfigError, match=r"recipe\.yml: holds something else"):
        with_seeds(experiment_file("quickstart"), file.parent, 3)
    assert recipe.read_text() == "mine: 1"


@pytest.mark.parametrize("right", [True, False])
def test_a_file_that_cannot_go_on_stops_no_manager(write, tmp_path, monkeypatch, right):
    """One that a killed command left behind, with the port that is asked for again."""
    done = []
    manager = SimpleNamespace(pid=1)
    monkeypatch.setattr(resume, "_manager_of", lambda _: manager)
    monkeypatch.setattr(resume, "_left_alone", lambda _: True)
    monkeypatch.setattr(resume, "end_processes", lambda _: 0)
    folder = tmp_path / "abcdefgh"
    (folder / "db").mkdir(parents=True)
    data = as_json(preflight(write()).config)
    if not right:
        (tmp_path / "stand_in_trial.py").unlink()
    with contextlib.closing(sqlite3.connect(folder / "db" / "nni.sqlite")) as db:
        db.execute("create table ExperimentProfile (params text, revision integer)")
        db.execute("insert into ExperimentProfile values (?, 1)", [json.dumps(data)])
        db.commit()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        monkeypatch.setattr(resume, "_stop", lambda one: (held.close(), done.append(one)))
        monkeypatch.setattr(resume, "read_database", lambda _: SimpleNamespace(trials={}))
        monkeypatch.setattr(resume, "read_tried", lambda _: [])
        port = held.getsockname()[1]
        if right:
            assert resume.resume_plan(folder, port=port).port == port
        else:
            with pytest.raises(ConfigError, match="stand_in_trial"):
                resume.resume_plan(folder, port=port)
    assert done == ([manager] if right else [])
