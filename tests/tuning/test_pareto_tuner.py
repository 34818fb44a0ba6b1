"""The tuner as NNI's dispatcher calls it, without a manager."""

import json
import subprocess
import sys

import nni
import pytest
from tuning_cases import write_trials

from nni_gconv.errors import ConfigError
from nni_gconv.tuner import ParetoTuner

HALVES = {"_type": "choice", "_value": [1, 2], "macs": [0.3, 0.15]}
SPACE = dict.fromkeys("abc", HALVES)


def made(**settings):
    tuner = ParetoTuner(**settings)
    tuner.update_search_space(SPACE)
    return tuner


def score(parameters):
    return 0.9 - 0.2 * (parameters["a"] - 1) - 0.01 * (parameters["b"] + parameters["c"])


def play(tuner, first, count):
    given = []
    for number in range(first, first + count):
        given.append(tuner.generate_parameters(number))
        tuner.receive_trial_result(number, given[-1], {"default": score(given[-1])})
        tuner.trial_end(number, True)
    return given


def test_everything_is_tried_once_and_then_there_is_no_more():
    tuner = made(warmup=3)
    given = play(tuner, 0, 8)
    assert len({json.dumps(g) for g in given}) == 8
    with pytest.raises(nni.NoMoreTrialError):
        tuner.generate_parameters(8)
    # One trial ends later than NNI asks: the list is short, not an exception.
    assert tuner.generate_multiple_parameters([9, 10]) == []
    assert tuner.weights["a"] > 3 * tuner.weights["b"]
    # a is worth 20 times b and c, so the front does without it.
    assert [cost for cost, _ in tuner.front] == pytest.approx([0.55, 0.7, 0.85, 1.0])


def test_a_result_counts_although_nni_forgot_the_parameters():
    # It does so with the first of several that it asked for when there are fewer left.
    tuner = made(warmup=3)
    play(tuner, 0, 7)
    (_,) = tuner.generate_multiple_parameters([7, 8])
    tuner.receive_trial_result(7, "", {"default": 2.0})
    assert 2.0 in [score for _, score in tuner.front]


def test_only_budgets_between_low_and_high_are_tried():
    tuner = made(low=0.6, high=0.9)
    costs = [1 - sum(0.15 * (v - 1) for v in g.values()) for g in play(tuner, 0, 6)]
    assert min(costs) >= 0.6 - 1e-9
    assert max(costs) <= 0.9 + 1e-9
    with pytest.raises(nni.NoMoreTrialError):
        tuner.generate_parameters(6)


def test_a_measured_cost_is_believed_more_than_the_tables():
    tuner = made()
    given = tuner.generate_parameters(0)
    tuner.receive_trial_result(0, given, {"default": 0.9, "macs_ratio": 0.123})
    assert tuner.front == [(0.123, 0.9)]


def test_smaller_may_be_better():
    tuner = made(optimize_mode="minimize", metric="loss")
    for number, loss in enumerate((0.5, 0.2)):
        given = tuner.generate_parameters(number)
        tuner.receive_trial_result(number, given, {"loss": loss, "macs_ratio": 0.8})
    assert tuner.front == [(0.8, 0.2)]


def test_failed_trials_and_odd_results_do_no_harm():
    tuner = made()
    lost = tuner.generate_parameters(0)
    tuner.trial_end(0, False)
    assert tuner._running == {}
    for number, value in enumerate((None, "text", {"accuracy": 1}, {"default": float("nan")}), 1):
        given = tuner.generate_parameters(number)
        assert given != lost
        tuner.receive_trial_result(number, given, value)
    tuner.receive_trial_result(9, {"other": 1}, 0.5)
    tuner.trial_end(77, False)
    assert tuner.front == []


def test_what_others_measured_is_imported_and_not_tried_again():
    known = [{"parameter": {"a": a, "b": b, "c": 1}, "value": 0.5} for a in (1, 2) for b in (1, 2)]
    tuner = made()
    # As NNI's dispatcher hands it over, and strings in strings as its manager does.
    tuner.import_data([*known[:2], json.dumps(known[2]), {**known[3], "value": '{"default": 0.5}'}])
    assert len(tuner._finished) == 4
    given = play(tuner, 0, 4)
    assert all(g["c"] == 2 for g in given)


@pytest.mark.parametrize("kind", ["nnictl experiment export", "nni-gconv report", "the tuner"])
def test_files_of_earlier_trials_are_read(tmp_path, kind, monkeypatch):
    parameters = {"a": 2, "b": 1, "c": 1}
    rows = {
        "nnictl experiment export": [{"parameter": parameters, "value": 0.7, "trialJobId": "x"}],
        "nni-gconv report": [
            {"parameters": parameters, "accuracy": 0.7, "macs_ratio": 0.85, "status": "succeeded"},
            {"parameters": {}, "accuracy": None},
        ],
        "the tuner": {"format": 1, "trials": [{"parameter": parameters, "value": 0.7}]},
    }[kind]
    (tmp_path / "earlier.json").write_text(json.dumps(rows))
    tuner = made(earlier=str(tmp_path / "earlier.json"))
    assert tuner.front == [(pytest.approx(0.85), 0.7)]


def test_paths_begin_at_the_trials_code(tmp_path, monkeypatch):
    import base64

    (tmp_path / "earlier.json").write_text("[]")
    params = base64.b64encode(json.dumps({"trialCodeDirectory": str(tmp_path)}).encode()).decode()
    monkeypatch.setattr(sys, "argv", ["nni", "--exp_params", params])
    made(earlier="earlier.json")
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        made(earlier=["none.json"])


def test_a_resumed_experiment_repeats_no_trial_and_loses_no_proposal(tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "checkpoint"))
    before = made(seed=3)
    done = play(before, 0, 3)
    running = before.generate_parameters(3)
    lost = before.generate_parameters(4)  # NNI stopped before it had started this one
    write_trials(tmp_path, [*done, running])
    state = json.loads((tmp_path / "checkpoint" / "pareto.json").read_text())
    assert len(state["trials"]) == 3
    assert state["front"] == [list(pair) for pair in before.front]
    for order in ("load first", "space first"):
        after = ParetoTuner(seed=3)
        steps = [after.load_checkpoint, lambda t=after: t.update_search_space(SPACE)]
        for step in steps if order == "load first" else reversed(steps):
            step()
        after.import_data([{"parameter": p, "value": {"default": score(p)}} for p in done])
        given = play(after, 4, 4)
        assert not {json.dumps(g) for g in given} & {json.dumps(g) for g in [*done, running]}
        assert lost in given
        with pytest.raises(nni.NoMoreTrialError):
            after.generate_parameters(9)


def test_a_damaged_database_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "nni.sqlite").write_text("{")
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path / "checkpoint"))
    tuner = ParetoTuner()
    tuner.load_checkpoint()
    tuner.update_search_space(SPACE)
    play(tuner, 0, 8)


def test_a_new_search_space_keeps_the_results_that_fit_it():
    tuner = made()
    play(tuner, 0, 3)
    tuner.update_search_space(
        {**SPACE, "a": {**HALVES, "_value": [1, 2, 4], "macs": [0.3, 0.2, 0.1]}}
    )
    assert len(tuner._finished) == 3
    tuner.update_search_space({"z": HALVES})
    assert tuner.front == []
    tuner.generate_parameters(9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": "mac"}, "did you mean 'macs'"),
        ({"optimize_mode": "max"}, "maximize, minimize"),
        ({"low": 1.5}, r"classArgs\.low: 1\.5"),
        ({"high": "half"}, r"classArgs\.high"),
        ({"warmup": -1}, r"classArgs\.warmup"),
        ({"seed": 0.5}, r"classArgs\.seed"),
        ({"high": 0.3}, r"cannot be reached; the choices reach 0\.550"),
        ({"low": 0.9, "high": 0.8}, "more than high"),
        ({"earlier": "/nowhere.json"}, "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        ParetoTuner.check_experiment(SPACE, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_tuner_comes_up_without_torch():
    # NNI's manager waits ten seconds for it.
    code = (
        "import sys; from nni_gconv.tuner import ParetoTuner; t = ParetoTuner(); "
        f"t.update_search_space({SPACE!r}); t.generate_parameters(0); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
