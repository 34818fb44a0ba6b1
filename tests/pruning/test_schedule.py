"""When masks are made, and for which share of the goal."""

from __future__ import annotations

import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.pruning.schedule import SCHEDULES, Schedule


def shares(value, epochs):
    schedule = Schedule.parse(value)
    return [schedule.share(border, epochs) for border in range(epochs + 1)]


@pytest.mark.parametrize(
    ("value", "epochs", "expected"),
    [
        ("one-shot", 2, [None, None, 1.0]),
        ("constant", 2, [1.0, 1.0, 1.0]),
        ({"name": "constant", "every": 2}, 5, [1.0, None, 1.0, None, 1.0, 1.0]),
        ({"name": "iterative", "rounds": 1}, 2, [1.0, None, None]),
        ({"name": "iterative", "rounds": 3}, 7, [1 / 3, None, 2 / 3, None, 1.0, None, None, None]),
        ({"name": "linear", "end": 4}, 5, [0.0, 0.25, 0.5, 0.75, 1.0, None]),
        ("linear", 4, [0.0, 1 / 3, 2 / 3, 1.0, None]),
        (
            {"name": "linear", "begin": 1, "end": 4, "every": 2, "initial": 0.25},
            5,
            [None, 0.25, None, 0.75, 1.0, None],
        ),
        ({"name": "cubic", "end": 2}, 2, [0.0, 0.875, 1.0]),
        ({"name": "agp", "end": 2}, 2, [0.0, 0.875, 1.0]),
    ],
)
def test_shares_at_the_borders_of_epochs(value, epochs, expected):
    assert shares(value, epochs) == pytest.approx(expected)


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n != "one-shot"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 37])
def test_every_schedule_rises_to_the_goal(name, epochs):
    Schedule.parse(name).check(epochs)
    made = [share for share in shares(name, epochs) if share is not None]
    assert made == sorted(made)
    assert made[-1] == 1.0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("cubick", r"schedule.name: unknown schedule 'cubick'; did you mean 'cubic'\?"),
        ({"end": 3}, r"schedule: {'end': 3} is not allowed \(a name, or a mapping such as"),
        ({"name": "linear", "ends": 3}, "schedule linear: unknown key 'ends'; did you mean 'end'"),
        ({"name": "constant", "rounds": 3}, "schedule constant: unknown key 'rounds'"),
        ({"name": "constant", "every": 0}, r"schedule.every: 0 is not allowed \(a whole number"),
        ({"name": "constant", "every": 1.5}, "schedule.every: 1.5 is not allowed"),
        ({"name": "iterative", "rounds": True}, "schedule.rounds: True is not allowed"),
        ({"name": "linear", "initial": 1}, "schedule.initial: 1 is not allowed"),
        ({"name": "linear", "begin": 4, "end": 4}, "schedule.end: 4 is not after begin, 4"),
        (3, "schedule: 3 is not allowed"),
    ],
)
def test_a_mistake_is_one_line(value, said):
    with pytest.raises(ConfigError, match=said):
        Schedule.parse(value)


@pytest.mark.parametrize(
    ("value", "epochs", "said"),
    [
        ({"name": "iterative", "rounds": 4}, 3, "schedule.rounds: 4 rounds do not fit into 3"),
        ({"name": "linear", "end": 4}, 3, "schedule.end: 4 is too late for a training of 3 epochs"),
        ({"name": "cubic", "begin": 3}, 4, "schedule.begin: 3 is too late"),
        ("cubic", 0, r"schedule cubic: needs training: .*a sparsify section"),
    ],
)
def test_a_goal_that_would_not_be_reached_is_refused(value, epochs, said):
    with pytest.raises(ConfigError, match=said):
        Schedule.parse(value).check(epochs)


def test_a_schedule_can_be_given_as_itself():
    schedule = Schedule("linear", end=3)
    assert Schedule.parse(schedule) is schedule
