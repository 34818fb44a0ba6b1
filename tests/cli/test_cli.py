import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from commands import call

from nni_gconv.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path):
    for i in range(2):
        (tmp_path / f"run{i}").mkdir()
        metrics = {"accuracy": 0.9 + i / 100, "accuracy_dense": 0.95, "macs_ratio": 0.3 + i / 10}
        (tmp_path / f"run{i}" / "result.json").write_text(
            json.dumps({"format": 1, "method": "fpgm", "metrics": metrics})
        )
    return tmp_path


def test_help_names_every_command_and_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from nni_gconv.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'torch', 'nni', 'matplotlib', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print('HEAVY', heavy - {'pydantic'})\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "HEAVY set()" in said
    for command in ("run", "quickstart", "create", "report", "profile"):
        assert f" {command} " in said


@pytest.mark.parametrize("command", ["run", "quickstart", "create", "report", "profile"])
def test_each_command_has_help(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert "--json" in out


def test_version(capsys):
    from nni_gconv._version import __version__

    code, out, err = call(capsys, "--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        rf"nni-gconv {re.escape(__version__)} \(torch \S+, nni 3\.0, Python 3\.\d+\.\d+\)\n", out
    )


@pytest.mark.slow
def test_python_m(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, "-m", "nni_gconv", "report", "nowhere"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 2
    assert said.stdout == ""
    assert said.stderr == "error: nowhere: neither a folder nor an experiment's id\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["reprot"], "No such command 'reprot'"),
        (["report"], "Missing argument 'EXPERIMENT"),
        (["report", "x", "--jsn"], "No such option: --jsn"),
        (["create", "x.yml", "--port", "many"], "--port"),
        (["create", "no.yml"], "no.yml: no such file"),
        (["run", "r.yml", "-o", "epochs"], "-o epochs: expected dotted.key=value"),
        (["profile", "resnet20", "--input", "1x3xA"], "--input 1x3xA"),
        (["profile", "resnet2"], "did you mean"),
        (["profile", "resnet20", "--input", "1x5x8x8"], "to have 3 channels, but got 5"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, args, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_bug_shows_itself(monkeypatch, runs):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("nni_gconv.report.collect", broken)
    with pytest.raises(ZeroDivisionError):
        main(["report", str(runs)])


def test_ctrl_c_is_130(monkeypatch, capsys, runs):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.delenv("NNI_TRIAL_JOB_ID", raising=False)
    monkeypatch.setattr("nni_gconv.report.collect", interrupt)
    monkeypatch.setattr(sys, "argv", ["nni-gconv", "report", "my runs"])
    code, _, err = call(capsys, "report", str(runs))
    again = "interrupted; run it again: nni-gconv report 'my runs'"
    assert (code, err.strip()) == (130, again)


@pytest.mark.parametrize(
    ("there", "speaks"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, False),
        ({"NNI_GCONV_SLOTS_TAKEN": "1"}, True),
        ({"NNI_GCONV_SLOTS_TAKEN": "1", "RANK": "0"}, False),  # of `run --gpus 2`, which speaks
    ],
)
def test_ctrl_c_of_a_run_is_said_by_one_process(monkeypatch, capsys, there, speaks):
    def interrupt(*_args):
        raise KeyboardInterrupt

    for name in ("RANK", "NNI_GCONV_SLOTS_TAKEN", "NNI_TRIAL_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("nni_gconv.recipe.load_recipe", interrupt)
    code, _, err = call(capsys, "run", "r.yml", "--gpus", "2")
    again = "go on with: nni-gconv run r.yml --resume --gpus 2"
    said = f"interrupted; what was finished is kept; {again}\n" if speaks else ""
    assert (code, err.lstrip("\n")) == (130, said)


def test_a_run_ends_with_both_networks_side_by_side(monkeypatch, capsys, tmp_path):
    from nni_gconv.recipe import TrialResult

    metrics = {
        "default": 0.75, "accuracy_dense": 0.8, "accuracy_small": 0.5, "accuracy": 0.75,
        "params": 1234, "params_ratio": 0.25, "macs": 21_111_579, "macs_ratio": 0.4999,
    }  # fmt: skip
    times = {"batch_size": 64, "backend": "eager", "dense_ms": 4.0, "small_ms": 3.0}
    result = TrialResult(
        name="r", method="fpgm", budget=None, metrics=metrics,
        dense={"params": 4936, "macs": 42_223_158}, test={"accuracy": 0.7}, stages={}, seed=0,
        latency=[{**times, "ratio": 0.75, "low": 0.7, "high": 0.8}], recipe={}, versions={},
        trial=None, output=tmp_path,
    )  # fmt: skip
    recipe = SimpleNamespace(device="cpu")
    monkeypatch.setattr("nni_gconv.recipe.load_recipe", lambda *_: recipe)
    monkeypatch.setattr("nni_gconv.recipe.torchrun_size", lambda *_: 0)
    monkeypatch.setattr("nni_gconv.recipe.run_recipe", lambda *_, **__: result)
    monkeypatch.setattr("nni_gconv.slots.gpu_slots", lambda *_, **__: contextlib.nullcontext())
    code, out, err = call(capsys, "run", "r.yml")
    assert (code, err) == (0, f"kept in {tmp_path}\n")
    (tmp_path / "compact.safetensors").touch()
    assert call(capsys, "run", "r.yml")[2].endswith(f"network: {tmp_path}/compact.safetensors\n")
    rows = [re.split(r" *│ *", line.strip("│ ")) for line in out.splitlines() if "│" in line]
    assert rows == [
        ["val accuracy", "0.8000", "0.7500"],
        ["test accuracy", "", "0.7000"],
        ["MACs", "42,223,158", "21,111,579", "0.500"],
        ["parameters", "4,936", "1,234", "0.250"],
        ["latency, batch 64, eager", "4.000 ms", "3.000 ms", "0.750 (0.700 to 0.800)"],
    ]


@pytest.mark.slow
def test_under_nni_an_interrupted_trial_dies_of_the_signal(runs):
    # With an exit code NNI would count a trial it stopped early as failed.
    code = (
        "import nni_gconv.report as r, nni_gconv.cli as c\n"
        "def interrupt(*a): raise KeyboardInterrupt\n"
        "r.collect = interrupt\n"
        f"c.main(['report', {str(runs)!r}])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NNI_TRIAL_JOB_ID": "x"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert done.returncode == -2


def test_report_prints_a_table_and_writes_files(capsys, runs):
    csv, plot = runs / "out" / "t.csv", runs / "out" / "p.png"
    code, out, err = call(capsys, "report", str(runs), "--csv", str(csv), "--plot", str(plot))
    assert code == 0
    assert "91.00" in out
    assert csv.is_file()
    assert plot.is_file()
    assert f"saved {csv}" in err


def test_report_as_json(capsys, runs):
    code, out, _ = call(capsys, "report", str(runs / "run0"), str(runs / "run1"), "--json")
    assert code == 0
    assert [row["macs_ratio"] for row in json.loads(out)] == [0.3, 0.4]


def test_a_number_that_is_none_becomes_null(capsys, runs):
    metrics = '{"format": 1, "metrics": {"accuracy": NaN}}'
    (runs / "run0" / "result.json").write_text(metrics)
    _, out, _ = call(capsys, "report", str(runs / "run0"), "--json")
    assert json.loads(out, parse_constant=pytest.fail)[0]["accuracy"] is None


def test_profile_counts_as_the_library_does(capsys):
    code, out, _ = call(capsys, "profile", "resnet20", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["params"], found["macs"]) == (269722, 40551040)
    code, out, _ = call(capsys, "profile", "resnet20", "--input", "1x1x8x8", "-o", "in_channels=1")
    assert code == 0
    assert "conv1" in out


def test_create_checks_without_starting(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "config"))
    file = tmp_path / "e.yml"
    data = {
        "trialCommand": "true",
        "trialConcurrency": 1,
        "searchSpace": {"x": {"_type": "uniform", "_value": [0, 1]}},
        "tuner": {"name": "TPE"},
        "trainingService": {"platform": "local"},
    }
    file.write_text(yaml.safe_dump(data))
    code, out, err = call(capsys, "create", str(file), "--check")
    assert (code, out) == (0, "")
    assert "nothing wrong found" in err
    assert "until Ctrl-C" in err
    assert not list((tmp_path / "nni-experiments").iterdir())
