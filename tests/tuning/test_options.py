import json

import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.experiment.checks.search_space import check_space
from nni_gconv.tuning.options import Options

HALVES = {"_type": "choice", "_value": [1, 2], "macs": [0.4, 0.2], "params": [0.3, 0.1]}


def test_costs_are_shares_of_the_whole_network():
    options = Options.from_space({"a": HALVES, "lr": {"_type": "choice", "_value": [0.1, 0.01]}})
    assert options.cost((0, 1)) == 1.0
    assert options.cost((1, 0)) == pytest.approx(0.8)
    assert options.range == (0.8, 1.0)
    assert options.count == 4
    assert Options.from_space({"a": HALVES}, "params").range == (0.8, 1.0)


def test_parameters_survive_json():
    options = Options.from_space(
        {"a": HALVES, "b": {"_type": "choice", "_value": [[1, 2], {"x": 1.0}, "t", True]}}
    )
    for choice in [(0, 0), (1, 1), (0, 2), (1, 3)]:
        assert options.choice(json.loads(json.dumps(options.parameters(choice)))) == choice
    assert options.choice({"a": 2}) is None
    assert options.choice({"a": 3, "b": "t"}) is None
    assert options.choice("no mapping") is None


def test_without_a_word_of_loss_as_much_is_lost_as_is_saved():
    assert Options.from_space({"a": HALVES}).decisions[0].lost.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_type": "uniform", "_value": [0, 1]}, "choice only"),
        ({**HALVES, "macs": [0.4]}, "macs has 1 numbers, _value 2"),
        ({**HALVES, "macs": [0.4, -1]}, "numbers from 0 to 1"),
        ({**HALVES, "mac": [0.4, 0.2]}, "did you mean 'macs'"),
        ({"_type": "choice", "_value": []}, "must be a list"),
        ({"_type": "choice", "_value": [1, 2]}, "no key has a list 'macs'"),
        ({"_type": "choice", "_value": [{"_name": "x"}], "macs": [1]}, "nested"),
    ],
)
def test_what_is_wrong_with_a_search_space_is_said(change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Options.from_space({"a": change})
    assert "\n" not in str(caught.value)


def test_nni_s_own_tuners_may_have_the_same_file():
    check_space({"a": HALVES})
    with pytest.raises(ConfigError, match="macs has 1 numbers"):
        check_space({"a": {**HALVES, "macs": [0.1]}})
    with pytest.raises(ConfigError, match="only a choice"):
        check_space({"a": {"_type": "uniform", "_value": [0, 1], "macs": [0.1, 0.2]}})
    from nni.algorithms.hpo.tpe_tuner import TpeTuner

    tuner = TpeTuner(seed=0)
    tuner.update_search_space({"a": HALVES})
    assert tuner.generate_parameters(0)["a"] in (1, 2)
