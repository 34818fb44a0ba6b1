"""NNI's own tuners, mended: what breaks NNI's breaks ours no more."""

import nni
import pytest
from nni.algorithms.hpo.evolution_tuner import EvolutionTuner
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from nni.runtime import msg_dispatcher_base
from nni.runtime.tuner_command_channel import CommandType

from nni_gconv import tuner as tuners

SPACE = {"x": {"_type": "uniform", "_value": [0, 1]}}


def late_result(kind):
    tuner = kind(optimize_mode="maximize")
    tuner.update_search_space(SPACE)
    (given,) = tuner.generate_multiple_parameters([0], st_callback=None)
    tuner.trial_end(0, False)  # stopped by an assessor
    tuner.receive_trial_result(0, given, {"default": 0.5})
    return tuner.generate_multiple_parameters([1], st_callback=None)


def early_result(kind):
    tuner = kind(optimize_mode="maximize")
    tuner.update_search_space(SPACE)
    (given,) = tuner.generate_multiple_parameters([0], st_callback=None)
    tuner.receive_trial_result(0, given, {"default": 0.5})
    tuner.trial_end(0, False)
    return tuner.generate_multiple_parameters([1], st_callback=None)


@pytest.mark.parametrize("order", [late_result, early_result])
@pytest.mark.parametrize("kind", [tuners.TPE, tuners.Evolution])
def test_a_result_may_come_before_and_after_the_end_of_its_trial(kind, order):
    assert 0 <= order(kind)[0]["x"] <= 1


@pytest.mark.parametrize(
    ("kind", "order", "error"),
    [
        (TpeTuner, late_result, KeyError),
        (EvolutionTuner, late_result, RuntimeError),
        (EvolutionTuner, early_result, KeyError),
    ],
)
def test_nni_s_own_still_need_it(kind, order, error):
    with pytest.raises(error):
        order(kind)


class Sent(list):
    """Takes the place of the channel to the manager."""

    def connect(self):
        pass

    def _send(self, command, data):
        self.append((command, nni.load(data) if data else data))


def made(kind, monkeypatch, **settings):
    sent = Sent()
    monkeypatch.setattr("nni.runtime.msg_dispatcher_base.TunerCommandChannel", lambda url: sent)
    variables = msg_dispatcher_base.dispatcher_env_vars._replace(
        NNI_TUNER_COMMAND_CHANNEL="ws://_unittest_placeholder_/"
    )
    monkeypatch.setattr(msg_dispatcher_base, "dispatcher_env_vars", variables)
    return kind(**settings), sent


@pytest.mark.parametrize("name", ["Hyperband", "BOHB"])
@pytest.mark.parametrize("key", ["TRIAL_BUDGET", "finetune.epochs"])
def test_advisors_take_metrics_and_give_a_recipe_its_epochs(monkeypatch, name, key):
    if name == "BOHB":
        pytest.importorskip("ConfigSpace")
        pytest.importorskip("statsmodels")
    size = {"R": 9} if name == "Hyperband" else {"min_budget": 1, "max_budget": 9}
    advisor, sent = made(getattr(tuners, name), monkeypatch, budget_key=key, **size)
    advisor.handle_initialize(SPACE)
    seen = set()
    for _ in range(30):  # until configurations of the first round go on with more
        advisor.handle_request_trial_jobs(1)
        trials = [data for command, data in sent if command is CommandType.NewTrialJob]
        for trial in trials:
            identity = trial["parameter_id"]
            if identity in seen:
                continue
            seen.add(identity)
            assert set(trial["parameters"]) == {"x", key}
            report = {
                "parameter_id": identity, "trial_job_id": identity, "type": "FINAL",
                "sequence": 0, "value": nni.dump(nni.dump({"default": 0.5})),
            }  # fmt: skip
            report["value"] = nni.dump({"default": trial["parameters"]["x"]})
            advisor.handle_report_metric_data(report)
            ended = {
                "trial_job_id": identity,
                "event": "SUCCEEDED",
                "hyper_params": nni.dump(trial),
            }
            advisor.handle_trial_end(ended)
    budgets = {trial["parameters"][key] for trial in trials}
    assert budgets == {1, 3, 9}
    if key != "TRIAL_BUDGET":
        assert all(isinstance(budget, int) for budget in budgets)
