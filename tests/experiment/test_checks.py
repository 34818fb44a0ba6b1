"""What `create --check` refuses of files that NNI takes, and that break then."""

import json

import pytest

from nni_gconv.compat.nni_database import read_database
from nni_gconv.errors import ConfigError
from nni_gconv.experiment.checks.preflight import preflight
from nni_gconv.experiment.checks.search_space import check_space

pytestmark = pytest.mark.usefixtures("forked_probes")

BASE = {
    "trialCommand": "python trial.py",
    "trialCodeDirectory": ".",
    "trialConcurrency": 1,
    "maxTrialNumber": 1,
    "searchSpace": {"x": {"_type": "choice", "_value": [1, 2]}},
    "tuner": {"name": "TPE", "classArgs": {"optimize_mode": "maximize"}},
    "trainingService": {"platform": "local"},
}


@pytest.fixture
def check(tmp_path):
    (tmp_path / "trial.py").write_text("")

    def run(**changes):
        (tmp_path / "experiment.yml").write_text(json.dumps({**BASE, **changes}))
        preflight(tmp_path / "experiment.yml")

    return run


GOOD = [
    {},
    {"tuner": {"name": "Random"}},
    {"tuner": {"name": "Evolution", "classArgs": {"optimize_mode": "minimize"}}},
    {
        "tuner": {"name": "BatchTuner"},
        "searchSpace": {"all": {"_type": "choice", "_value": [{"x": 1}, {"x": 2}]}},
    },
    {"assessor": {"name": "Medianstop", "classArgs": {"start_step": 2}}},
]
BAD = [
    ({"tuner": {"name": "TPE", "classArgs": {"optimise_mode": "maximize"}}}, "did you mean"),
    ({"tuner": {"name": "TPE", "classArgs": {"optimize_mode": "largest"}}}, "largest"),
    ({"tuner": {"name": "TPE", "classArgs": {"tpe_args": {"n_jobs": 3}}}}, "n_jobs"),
    ({"tuner": {"name": "Evolution", "classArgs": {"optimize_mode": "x"}}}, "classArgs"),
    ({"assessor": {"name": "Medianstop", "classArgs": {"begin": 2}}}, "unknown argument 'begin'"),
    ({"tuner": {"name": "BatchTuner"}}, "one choice of whole settings"),
    ({"trialCommand": "  "}, "trialCommand is empty"),
    ({"trialCommand": "python nowhere.py --x"}, "no such script"),
    ({"trialCommand": "A=1 python3 nowhere.py"}, "no such script"),
    ({"searchSpace": {"x": {"_type": "choice", "_value": [{"a": 1}, {"a": 2}]}}}, "needs a _name"),
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", GOOD)
def test_what_works_is_taken(check, changes):
    check(**changes)


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "words"), BAD)
def test_what_would_break_is_one_line(check, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        check(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("loguniform", [0, 1], "over 0"),
        ("loguniform", [-1, 1], "over 0"),
        ("qloguniform", [0, 1, 1], "over 0"),
        ("uniform", [1, 0], "below the second"),
        ("uniform", [1, 1], "below the second"),
        ("uniform", [0, float("inf")], "takes 2 numbers"),
        ("quniform", [0, 1, 0], "step"),
        ("randint", [5, 5], "below the second"),
        ("randint", [0, 2.5], "whole numbers"),
        ("normal", [0, 0], "deviation"),
        ("lognormal", [0, -1], "deviation"),
        ("qnormal", [0, 1, -1], "step"),
    ],
)
def test_ranges_are_checked(kind, values, words):
    with pytest.raises(ConfigError, match=words):
        check_space({"x": {"_type": kind, "_value": values}})


@pytest.mark.parametrize(
    ("kind", "values"),
    [("loguniform", [1e-6, 1]), ("uniform", [-1, 0]), ("quniform", [0, 1, 0.1]),
     ("randint", [0, 5]), ("normal", [0, 1]), ("lognormal", [-3, 1])],
)  # fmt: skip
def test_right_ranges_are_taken(kind, values):
    check_space({"x": {"_type": kind, "_value": values}})


def test_an_unreadable_database_is_told(tmp_path):
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "nni.sqlite").write_bytes(b"SQLite format 3\x00" + b"x" * 5000)
    with pytest.raises(ConfigError, match=r"nni.sqlite: cannot be read"):
        read_database(tmp_path)
