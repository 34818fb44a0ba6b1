"""Curves that several trials measured, joined."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nni_gconv.analysis.curves import Curve, Point, Score, Together
from nni_gconv.analysis.result import Sensitivity
from nni_gconv.cli import main
from nni_gconv.cli.experiments.create import print_curves
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.experiment.watch import Ending, Outcome
from nni_gconv.report import collect
from nni_gconv.report.trial_curves import join_curves


def trial(folder, layer, accuracies, criterion="l1", tolerance=0.01):
    points = tuple(Point(a, 1 - a, i / 4, i) for i, a in enumerate(accuracies))
    found = Sensitivity(
        criterion,
        Score(accuracies[0], 0.1),
        (Curve((layer,), 8, points),),
        Together(0.9, 0.1, tolerance, 0.9, 0.9),
        prune={"method": "fpgm"},
    )
    found.save(folder / "sensitivity" / criterion)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Write an experiment once: its pictures take a second."""
    folder = tmp_path_factory.mktemp("experiment")
    for name, layer, accuracies in [
        ("aaaaa", "first", [0.9, 0.9, 0.5]),
        ("bbbbb", "second", [0.9, 0.89, 0.89]),
    ]:
        trial(folder / "environments/local-env/trials" / name, layer, accuracies)
    (folder / "db").mkdir()
    return folder


@pytest.fixture
def experiment(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path, dirs_exist_ok=True))


@pytest.mark.slow
def test_curves_of_all_trials_are_one_picture(experiment, capsys):
    found, files = join_curves(experiment, tolerance=0.02)
    assert [curve.layers for curve in found.curves] == [("first",), ("second",)]
    assert found.ratios(0.02) == {"first": 0.25, "second": 0.5}
    assert found.dense.accuracy == 0.9
    assert [file.name for file in files] == ["curves.csv", "curves.png", "prune.yml"]
    assert files[0].parent == experiment / "report"
    with pytest.raises(SystemExit) as caught:
        main(["sensitivity", str(experiment), "--json", "--output", str(experiment / "x")])
    assert caught.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert [s["layers"] for s in printed["sets"]] == [["first"], ["second"]]
    assert (experiment / "x" / "curves.png").is_file()


@pytest.mark.slow
def test_what_cannot_be_joined_is_said(experiment, tmp_path):
    damaged = experiment / "environments/local-env/trials/aaaaa/sensitivity/l1/curves.csv"
    text = damaged.read_text()
    damaged.write_text(text.replace("0.25", "quarter"))
    with pytest.raises(CheckpointError, match="is damaged"):
        join_curves(experiment)
    damaged.write_text(text)
    trial(experiment / "environments/local-env/trials/ccccc", "third", [0.9], "fpgm")
    with pytest.raises(ConfigError, match="several criteria cannot be joined: fpgm, l1"):
        join_curves(experiment)
    (tmp_path / "empty" / "db").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no trial has"):
        join_curves(tmp_path / "empty")


def test_the_tolerance_is_that_of_the_trials(experiment):
    found, _ = join_curves(experiment)
    assert found.together.tolerance == 0.01
    assert found.ratios(0.01) == {"first": 0.25, "second": 0.0}
    for file in experiment.glob("environments/*/trials/*/sensitivity/*/prune.yml"):
        text = file.read_text()
        file.write_text(text[text.index("prune:") :])  # nothing is said
    assert join_curves(experiment)[0].together.tolerance == 0.001


def test_several_tolerances_are_asked_about(experiment):
    folder = experiment / "environments/local-env/trials/ccccc"
    trial(folder, "third", [0.9, 0.8], tolerance=0.02)
    with pytest.raises(ConfigError, match=r"several tolerances \(0\.01, 0\.02\): give one"):
        join_curves(experiment)
    assert join_curves(experiment, tolerance=0.05)[0].together.tolerance == 0.05


def test_create_ends_with_the_curves_and_how_to_see_them_again(experiment, capsys):
    rows = collect(experiment)
    outcome = Outcome(Ending.SUCCESS, "done", "abcdefgh", experiment, trials=(), failures={})
    print_curves(outcome, rows)
    told = capsys.readouterr()
    assert "first" in told.out
    assert "second" in told.out
    assert "nni-gconv sensitivity abcdefgh --tolerance 0.01" in told.err
    damaged = experiment / "environments/local-env/trials/aaaaa/sensitivity/l1/curves.csv"
    damaged.write_text(damaged.read_text().replace("0.25", "quarter"))
    print_curves(outcome, rows)
    told = capsys.readouterr()
    assert "is damaged" in told.err
    assert "aaaaa" in told.out  # the trials are still told of
