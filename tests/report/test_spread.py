"""What differs in the seed alone is one line with a spread."""

from __future__ import annotations

import statistics

import pytest

from nni_gconv.cli.output import print_trials
from nni_gconv.report import TrialRow, spread_table
from nni_gconv.report.spread import repeated


def rows(method, accuracies, macs=0.5, **more):
    return [
        TrialRow(
            f"{method}{macs}{seed}", "succeeded", method=method, budget={"macs": macs},
            accuracy=accuracy, accuracy_dense=0.95, macs_ratio=macs,
            parameters={"prune.method": method, "prune.budget.macs": macs, "seed": seed, **more},
        )
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip


def test_mean_and_deviation_of_what_differs_in_the_seed_alone():
    accuracies = [0.91, 0.93, 0.95]
    found = [*rows("fpgm", accuracies), *rows("fpgm", [0.8, 0.82], 0.25), *rows("gconv", [0.9])]
    text = str(spread_table(found))
    assert f"{93:.2f}±{100 * statistics.stdev(accuracies):.2f}" in text
    assert "-2.00±2.00" in text
    assert "81.00±1.41" in text
    assert "gconv" not in text  # it ran once
    assert [len(group) for group in repeated(found)] == [3, 2]


def test_other_parameters_and_trials_without_a_result_stay_apart():
    found = [
        *rows("fpgm", [0.9], epochs=1), *rows("fpgm", [0.8], epochs=2),
        *rows("gconv", [0.9, None]),
    ]  # fmt: skip
    assert repeated(found) == []
    assert spread_table(found) is None
    assert spread_table([TrialRow("a", "succeeded", accuracy=0.9)]) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_it_stands_below_the_trials(seeds, capsys):
    print_trials(rows("fpgm", [0.9] * seeds))
    shown = capsys.readouterr().out
    assert ("over seeds" in shown) == (seeds > 1)
