"""Grid search that knows what was tried before its experiment was cut off."""

import nni
import pytest
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
from tuning_cases import write_trials

from nni_gconv.tuner import GridSearch

SPACE = {
    "a": {"_type": "choice", "_value": [0.5, 1.0]},
    "b": {"_type": "choice", "_value": ["x", "y"]},
}


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """An experiment of two trials: one has a result, one was cut off."""
    (tmp_path / "checkpoint").mkdir()
    write_trials(tmp_path, [{"a": 1.0, "b": "x"}, {"a": 0.5, "b": "y"}])
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "checkpoint"))


def proposals(kind, told):
    tuner = kind()
    tuner.load_checkpoint()
    tuner.update_search_space(SPACE)
    tuner.import_data(told)
    found = []
    with pytest.raises(nni.NoMoreTrialError):
        while True:
            found.append(tuner.generate_parameters(len(found)))
    return [(one["a"], one["b"]) for one in found]


def test_what_was_tried_is_not_proposed_again(resumed):
    # What NNI tells a tuner at a resume: the trial with a result, 1.0 written as 1.
    told = [{"parameter": {"a": 1, "b": "x"}, "value": 0.9}]
    assert sorted(proposals(GridSearch, told)) == [(0.5, "x"), (1.0, "y")]
    assert len(proposals(GridSearchTuner, told)) == 4  # NNI's own makes all of them again


def test_a_new_experiment_has_the_whole_grid(monkeypatch):
    monkeypatch.delenv("NNI_CHECKPOINT_DIRECTORY", raising=False)
    assert len(proposals(GridSearch, [])) == 4
