import base64
import csv
import io
import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from filelock import FileLock

from nni_gconv.errors import ConfigError
from nni_gconv.report import (
    TrialRow,
    collect,
    json_rows,
    pareto_front,
    plain_table,
    plot_trials,
    rich_table,
    write_csv,
    write_html,
)
from nni_gconv.report.html import _curve
from nni_gconv.report.table import telling

# The tables of NNI 3.0, core/sqlDatabase.js.
TABLES = """
create table TrialJobEvent (timestamp integer, trialJobId text, event text, data text,
    logPath text, sequenceId integer, message text, environmentId text);
create table MetricData (timestamp integer, trialJobId text, parameterId text, type text,
    sequence integer, data text);
create table ExperimentProfile (params text, id text, execDuration integer, startTime integer,
    endTime integer, logDir text, nextSequenceId integer, revision integer);
"""


def result(accuracy=0.9, macs=0.5, method="fpgm", **changes):
    return {
        "format": 1,
        "name": "r",
        "method": method,
        "budget": {"macs": macs},
        "metrics": {
            "default": accuracy,
            "accuracy": accuracy,
            "accuracy_dense": 0.95,
            "params": 100.0,
            "params_ratio": 0.6,
            "macs": 1000.0,
            "macs_ratio": macs,
            "latency_ms": None,
            "latency_ratio": None,
        },
        "dense": {"params": 200, "macs": 2000, "latency_ms": 1.0},
        "test": {"accuracy": 0.88, "accuracy_dense": 0.94},
        "stages": {"train": {"seconds": 3.0}, "prune": {"seconds": 1.5}},
        **changes,
    }


class Experiment:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "db").mkdir(parents=True)
        self.number = 0
        self.execute(TABLES, script=True)

    def execute(self, sql, values=(), script=False):
        connection = sqlite3.connect(self.folder / "db" / "nni.sqlite")
        with connection:
            connection.executescript(sql) if script else connection.execute(sql, values)
        connection.close()

    def trial(self, key, *events, parameters=None, written=None, metrics=None, asked=None):
        data = json.dumps({"parameter_id": self.number, "parameters": parameters or {}})
        for i, event in enumerate(events):
            self.execute(
                "insert into TrialJobEvent values (?,?,?,?,null,?,null,'local-env')",
                (1000 * (i + 1), key, event, data if i == 0 else None, self.number),
            )
        if metrics is not None:
            self.execute(
                "insert into MetricData values (0,?,?,'FINAL',0,?)",
                (
                    key,
                    str(self.number if asked is None else asked),
                    json.dumps(json.dumps(metrics)),
                ),
            )
        place = self.folder / "environments" / "local-env" / "trials" / key
        place.mkdir(parents=True)
        if written is not None:
            text = written if isinstance(written, str) else json.dumps(written)
            (place / "result.json").write_text(text)
        self.number += 1
        return place

    def end(self):
        self.execute("insert into ExperimentProfile values ('{}','e',1,1,5000,null,9,1)")


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "exp1")


def test_a_finished_trial_is_read_from_its_own_result(experiment):
    experiment.trial("a", "WAITING", "RUNNING", "SUCCEEDED", written=result())
    (row,) = collect(experiment.folder)
    assert (row.trial, row.status, row.method, row.budget) == (
        "a",
        "succeeded",
        "fpgm",
        {"macs": 0.5},
    )
    assert (row.accuracy, row.accuracy_dense, row.macs_ratio) == (0.9, 0.95, 0.5)
    assert (row.test_accuracy, row.test_accuracy_dense) == (0.88, 0.94)
    assert row.latency_ratio is None
    assert row.seconds == 1.0  # NNI's clock, from RUNNING to the end


def test_without_a_result_there_is_still_what_nni_knows(experiment):
    given = {"prune.method": "fpgm", "prune.budget.macs": 0.25}
    experiment.trial(
        "a", "RUNNING", "SUCCEEDED", parameters=given, metrics={"default": 0.5, "accuracy": 0.5}
    )
    (row,) = collect(experiment.folder)
    assert (row.method, row.budget, row.accuracy) == ("fpgm", {"macs": 0.25}, 0.5)
    assert row.parameters == given


def test_our_trials_tell_nni_their_accuracy_once(experiment):
    told = {"default": 0.5, "macs_ratio": 0.25}
    experiment.trial("a", "RUNNING", "SUCCEEDED", metrics=told)
    (row,) = collect(experiment.folder)
    assert (row.accuracy, row.macs_ratio, row.metric) == (0.5, 0.25, None)


def test_trials_that_are_not_ours_show_nnis_metric(experiment, tmp_path):
    experiment.trial("a", "RUNNING", "SUCCEEDED", parameters={"lr": 0.1}, metrics=12.5)
    experiment.trial("b", "RUNNING", "SUCCEEDED", parameters={"lr": 0.2}, metrics={"default": 3})
    experiment.trial("c", "RUNNING")
    rows = collect(experiment.folder)
    assert [(row.metric, row.accuracy) for row in rows] == [(12.5, None), (3.0, None), (None, None)]
    head, a, b, _, legend = plain_table(rows).splitlines()
    assert head.split() == ["metric", "seconds", "status", "parameters", "trial"]
    assert (a.split()[0], b.split()[0]) == ("12.5", "3")
    assert "lr=0.1" in a
    assert legend == "metric: what a trial reported to NNI as its default"
    page = write_html(rows, tmp_path / "report.html").read_text()
    assert ">metric</th>" in page
    assert ">12.5</td>" in page
    assert json_rows(rows)[0]["metric"] == 12.5
    experiment.trial("d", "RUNNING", "SUCCEEDED", written=result())
    both = plain_table(collect(experiment.folder)).splitlines()
    assert {"metric", "acc.", "MACs"} <= set(both[0].split())


def test_every_status_has_its_word(experiment):
    failed = experiment.trial("f", "RUNNING", "FAILED")
    (failed / "trial.stderr").write_text("Traceback\n  ...\nerror: no such data\n\n")
    experiment.trial("k", "RUNNING", "USER_CANCELED")  # nobody cancelled it
    experiment.trial("c", "RUNNING", "USER_TO_CANCEL", "USER_CANCELED")
    experiment.trial("e", "RUNNING", "EARLY_STOPPED")
    experiment.trial("r", "RUNNING")
    experiment.trial("u", "RUNNING", "SUCCEEDED", written='{"format": 1')
    experiment.trial("v", "RUNNING", "SUCCEEDED", written={"format": 2})
    rows = {row.trial: row for row in collect(experiment.folder)}
    assert list(rows) == ["f", "k", "c", "e", "r", "u", "v"]
    assert [row.status for row in rows.values()] == [
        "failed",
        "killed",
        "cancelled",
        "early stopped",
        "running",
        "unreadable",
        "unreadable",
    ]
    assert rows["f"].error == "error: no such data"
    assert "result.json" in rows["v"].error
    experiment.end()
    assert {row.trial: row.status for row in collect(experiment.folder)}["r"] == "stopped"


def test_a_trial_whose_manager_was_killed_with_it_is_not_running(experiment):
    place = experiment.trial("a", "RUNNING")
    other = experiment.trial("b", "RUNNING")
    with FileLock(place / ".lock"), FileLock(other / ".lock"):
        assert [row.status for row in collect(experiment.folder)] == ["running", "running"]
    (other / ".lock").unlink(missing_ok=True)  # not ours, or not begun: nothing is known
    (place / ".lock").touch()
    assert [row.status for row in collect(experiment.folder)] == ["stopped", "running"]


def test_swapped_parameters_are_put_right(experiment):
    # NNI gave the two trials each other's; the metric says which it was.
    experiment.trial("a", "RUNNING", "SUCCEEDED", parameters={"x": 1}, metrics=0.1, asked=1)
    experiment.trial("b", "RUNNING", "SUCCEEDED", parameters={"x": 2}, metrics=0.2, asked=0)
    assert [row.parameters for row in collect(experiment.folder)] == [{"x": 2}, {"x": 1}]


def test_a_database_that_cannot_be_read_is_told(experiment):
    experiment.trial("a", "RUNNING", "SUCCEEDED", written=result())
    (experiment.folder / "db" / "nni.sqlite").write_bytes(b"no database at all" * 99)
    with pytest.raises(ConfigError, match=r"nni\.sqlite: cannot be read"):
        collect(experiment.folder)


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_lost_database_leaves_the_folders(experiment, damage):
    experiment.trial("a", "RUNNING", "SUCCEEDED", written=result())
    experiment.trial("b", "RUNNING")
    database = experiment.folder / "db" / "nni.sqlite"
    database.unlink()
    if damage != "missing":
        database.write_bytes(b"")
    rows = collect(experiment.folder)
    assert [(row.trial, row.status) for row in rows] == [("a", "succeeded"), ("b", "running")]


def test_run_folders_and_folders_of_them(tmp_path):
    for name, accuracy in (("one", 0.8), ("two", 0.9)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps(result(accuracy)))
    (tmp_path / "runs" / "unfinished").mkdir()
    rows = collect(tmp_path / "runs")
    assert [(row.trial, row.accuracy, row.seconds) for row in rows] == [
        ("one", 0.8, 4.5),
        ("two", 0.9, 4.5),
    ]
    twice = collect([tmp_path / "runs" / "two", str(tmp_path / "runs" / "one")])
    assert [row.trial for row in twice] == ["two", "one"]


def test_an_id_is_looked_up_as_nnictl_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "nni-experiments"
    Experiment(home / "abcdefgh").trial("a", "RUNNING")
    Experiment(tmp_path / "elsewhere" / "ijklmnop").trial("b", "RUNNING")
    (home / ".experiment").write_text(
        json.dumps({"ijklmnop": {"logDir": str(tmp_path / "elsewhere")}})
    )
    assert [row.trial for row in collect(["abcdefgh", "ijklmnop"])] == ["a", "b"]
    with pytest.raises(ConfigError, match="did you mean 'abcdefgh'"):
        collect("abcdefgg")
    with pytest.raises(ConfigError, match="did you mean 'ijklmnop'"):
        collect("ijklmnoo")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"result\.json"):
        collect(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        collect(tmp_path / "a" / "b")


def row(trial, accuracy, macs, method="fpgm", **more):
    return TrialRow(trial, "succeeded", method=method, accuracy=accuracy, macs_ratio=macs, **more)


def test_the_pareto_front_is_of_those_that_nothing_beats():
    rows = [
        row("worse", 0.80, 0.6),
        row("best", 0.95, 0.7),
        row("small", 0.85, 0.2),
        row("equal", 0.85, 0.2),
        row("tie", 0.85, 0.4),
        row("mid", 0.90, 0.4),
        row("none", None, 0.1),
        row("unmeasured", 0.99, None),
    ]
    assert [r.trial for r in pareto_front(rows)] == ["small", "mid", "best"]


ROWS = [
    row("a", 0.91234, 0.5, accuracy_dense=0.95, budget={"macs": 0.5}, seconds=12.4),
    row("b", 0.85, 0.25, "nni:L1NormPruner", accuracy_dense=0.95, budget={"macs": 0.25}),
    TrialRow("c", "failed", parameters={"prune.method": "fpgm"}, error='went, "wrong"\nbadly'),
]


def test_the_plain_table_is_aligned_and_complete():
    lines = plain_table(ROWS).splitlines()
    assert lines[0].split("  ")[0] == "method"
    assert "91.23" in lines[1]
    assert "macs 0.5" in lines[1]
    assert lines[1].endswith("a*")
    assert lines[3].split() == ["failed", "c"]
    assert len({line.find("succeeded") for line in lines[1:3]}) == 1


def test_the_status_is_shown_where_it_is_news():
    assert "status" in plain_table(ROWS)
    assert "status" not in plain_table(ROWS[:2])


def test_the_table_fits_a_terminal_of_80_columns():
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(ROWS[:2]))
    text = console.export_text()
    for word in ("nni:L1NormPruner", "macs 0.25", "latency", "seconds", "trial", "a*"):
        assert word in text
    assert "…" not in text


def of_a_grid(status="succeeded", more=()):
    """Two budgets, two rates, of one method, as the experiment that `init` writes has them."""
    return [
        replace(
            row("trial", 0.9, macs, "second_order", accuracy_dense=0.95, accuracy_small=0.8),
            trial=f"t{macs}{lr}",
            status=status,
            budget={"macs": macs},
            params_ratio=0.5,
            latency_ratio=0.5,
            latency_ratio_low=0.48,
            latency_ratio_high=0.52,
            parameters={"prune.budget.macs": macs, "finetune.optimizer.lr": lr, **dict(more)},
        )
        for macs in (0.7, 0.3)
        for lr in (0.01, 0.003)
    ]


@pytest.mark.parametrize("status", ["succeeded", "stopped"])
def test_trials_of_one_budget_are_told_apart(status, tmp_path):
    from rich.console import Console

    rows = of_a_grid(status)
    first, second = (line.split() for line in plain_table(rows).splitlines()[1:3])
    head = plain_table(rows).splitlines()[0].split()
    assert (head[2], first[3], second[3]) == ("lr", "0.01", "0.003")  # "macs 0.7" are two words
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(rows))
    text = console.export_text()
    assert "method: second_order; accuracy" in text  # in the legend: it would not fit
    assert len(text.splitlines()) <= 4 + len(rows) + 4  # no row is folded
    page = write_html(rows, tmp_path / "r.html").read_text()
    assert page.count('<th class="number">lr</th>') == 1
    assert page.count("second_order macs 0.7, lr 0.003: 90.00 %") == 1
    assert page.count('<td class="number" data-value="0.003">0.003</td>') == 2


def test_an_accuracy_that_stays_is_a_line_in_the_middle():
    records = [{"stage": "finetune", "val_accuracy": 1.0} for _ in range(3)]
    assert _curve(records)["stages"][0]["points"] == "0.0,60.0 300.0,60.0 600.0,60.0 "
    records[2]["val_accuracy"] = 0.5
    assert _curve(records)["stages"][0]["points"] == "0.0,5.0 300.0,5.0 600.0,115.0 "


def test_what_tells_nothing_or_too_much_is_no_column():
    assert telling(of_a_grid(more={"seed": 3}.items())) == {"finetune.optimizer.lr": "lr"}
    rows = of_a_grid()
    assert telling(rows[::2]) == {}  # the budgets tell
    for n, one in enumerate(rows):
        one.parameters.update(a=n, b=n)
    assert telling(rows) == {}
    twice = [TrialRow(str(n), "failed", parameters={"a.lr": n, "b.lr": n}) for n in range(2)]
    assert telling(twice) == {"a.lr": "a.lr", "b.lr": "b.lr"}


def test_the_accuracy_before_any_fine_tuning_is_shown_where_it_is_known():
    from rich.console import Console

    rows = [replace(r, accuracy_small=0.51234, accuracy_masked=0.5, top5=0.99) for r in ROWS[:2]]
    assert "cut %" not in plain_table(ROWS)
    text = plain_table(rows)
    assert "51.23" in text
    assert "cut: before any fine-tuning" in text
    assert "seconds" in text
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(rows))
    text = console.export_text()
    for word in ("nni:L1NormPruner", "macs 0.25", "latency", "cut %", "51.23", "a*"):
        assert word in text


def test_the_rich_table_holds_the_same():
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rich_table(ROWS, "a title [with brackets]"))
    text = console.export_text()
    for word in ("91.23", "nni:L1NormPruner", "macs 0.25", "failed", "a*", "b*"):
        assert word in text


def test_json_rows_are_json_with_unrounded_fractions():
    rows = json.loads(json.dumps(json_rows(ROWS)))
    assert rows[0]["accuracy"] == 0.91234
    assert rows[2]["accuracy"] is None
    wanted = {
        "method",
        "accuracy",
        "accuracy_dense",
        "params_ratio",
        "macs_ratio",
        "latency_ratio",
        "trial",
    }
    assert wanted <= set(rows[0])


def test_csv_survives_commas_quotes_and_lines(tmp_path):
    path = write_csv(ROWS, tmp_path / "deep" / "t.csv")
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [line["trial"] for line in read] == ["a", "b", "c"]
    assert float(read[0]["accuracy"]) == 0.91234
    assert read[2]["error"] == 'went, "wrong"\nbadly'
    assert read[2]["parameters.prune.method"] == "fpgm"
    assert [p.name for p in path.parent.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_picture_is_drawn(tmp_path, suffix, start):
    path = plot_trials(ROWS, tmp_path / f"p{suffix}", title="t")
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_picture_says_what_it_shows(tmp_path):

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = plot_trials(ROWS, tmp_path / "p.svg").read_text()
    for word in ("validation accuracy (%)", "MACs", "fpgm", "nni:L1NormPruner", "dense 95.00"):
        assert word in text
    assert "Pareto front" in text


def test_differing_baselines_are_a_band(tmp_path):

    rows = [row("a", 0.9, 0.5, accuracy_dense=0.95), row("b", 0.8, 0.4, accuracy_dense=0.93)]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert "dense 93.00 to 95.00" in plot_trials(rows, tmp_path / "p.svg").read_text()


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(ConfigError, match="nothing to plot"):
        plot_trials([ROWS[2]], tmp_path / "p.png")
    with pytest.raises(ConfigError, match="picture format"):
        plot_trials(ROWS, tmp_path / "p.bmp")
    with pytest.raises(ConfigError, match="did you mean 'macs_ratio'"):
        plot_trials(ROWS, tmp_path / "p.png", cost="mac_ratio")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_csv(ROWS, tmp_path / "file" / "t.csv")


# -- measured latencies ---------------------------------------------------------------------------


def timed(trial, accuracy, ratio, half=0.0):
    return TrialRow(
        trial, "succeeded", method="fpgm", accuracy=accuracy, macs_ratio=ratio,
        latency_ratio=ratio, latency_ratio_low=ratio - half, latency_ratio_high=ratio + half,
    )  # fmt: skip


def ringed(*rows):
    return [row.trial for row in pareto_front(rows, "latency_ratio")]


def test_a_difference_within_the_interval_is_none():
    quick, slow = timed("quick", 0.8, 0.55, 0.1), timed("slow", 0.9, 0.6, 0.1)
    assert ringed(quick, slow) == ["slow"]
    assert ringed(timed("quick", 0.8, 0.46, 0.05), slow) == ["slow"]  # they just overlap
    assert ringed(timed("quick", 0.8, 0.4, 0.01), slow) == ["quick", "slow"]
    assert ringed(timed("quick", 0.8, 0.55), timed("slow", 0.9, 0.6)) == ["quick", "slow"]
    same = timed("a", 0.9, 0.55, 0.1), timed("b", 0.9, 0.6, 0.1)
    assert ringed(*same) == ["a", "b"]  # neither is better
    assert ringed(timed("a", 0.9, 0.5), timed("b", 0.9, 0.5)) == ["a"]


def test_a_front_is_never_empty_and_rises():
    generator = np.random.default_rng(0)
    for _ in range(50):
        drawn = generator.uniform(size=(12, 3))
        rows = [timed(str(i), round(a, 1), c, w / 4) for i, (a, c, w) in enumerate(drawn)]
        front = pareto_front(rows, "latency_ratio")
        assert front
        assert [r.accuracy for r in front] == sorted(r.accuracy for r in front)


#: The quickstart's networks, timed twice: name, accuracy, and ratio, low, high of each time.
TWICE = [
    ("fpgm 0.25", 96.66, (0.798, 0.774, 0.825), (0.780, 0.750, 0.811)),
    ("fpgm 0.5", 97.77, (0.905, 0.877, 0.948), (0.897, 0.871, 0.939)),
    ("gconv 0.25", 97.49, (1.000, 1.000, 1.000), (1.000, 1.000, 1.000)),
    ("gconv 0.5", 98.05, (1.000, 1.000, 1.000), (1.000, 1.000, 1.000)),
    ("gsparsity 0.25", 90.81, (0.838, 0.787, 0.883), (0.807, 0.777, 0.870)),
    ("gsparsity 0.5", 92.20, (0.950, 0.905, 1.023), (0.958, 0.906, 0.993)),
    ("l1 0.25", 98.61, (0.798, 0.774, 0.825), (0.780, 0.750, 0.811)),
    ("l1 0.5", 97.21, (0.882, 0.839, 0.914), (0.894, 0.831, 0.935)),
    ("second_order 0.25", 98.05, (0.851, 0.821, 0.867), (0.823, 0.786, 0.855)),
    ("second_order 0.5", 97.77, (0.916, 0.899, 0.928), (0.937, 0.913, 0.966)),
    ("shuffle 0.25", 95.54, (1.000, 1.000, 1.000), (1.000, 1.000, 1.000)),
    ("shuffle 0.5", 97.77, (1.000, 1.000, 1.000), (1.000, 1.000, 1.000)),
    ("slimming 0.25", 95.26, (0.893, 0.872, 0.912), (0.897, 0.878, 0.922)),
    ("slimming 0.5", 96.94, (0.977, 0.929, 1.050), (0.993, 0.934, 1.037)),
]


def test_two_recorded_measurements_agree_on_the_front():
    def front(run, *without):
        rows = [
            TrialRow(
                name, "succeeded", method="m", accuracy=accuracy, latency_ratio=times[run][0],
                latency_ratio_low=times[run][1], latency_ratio_high=times[run][2],
            )
            for name, accuracy, *times in TWICE
            if name not in without
        ]  # fmt: skip
        return {row.trial for row in pareto_front(rows, "latency_ratio")}

    assert front(0) == front(1) == {"l1 0.25"}
    left = "l1 0.25", "second_order 0.25"
    assert front(0, left[0]) == front(1, left[0]) == {left[1]}
    few = {"fpgm 0.25", "fpgm 0.5", "second_order 0.5", "gconv 0.5"}
    assert front(0, *left) == front(1, *left) == few


@pytest.mark.slow
def test_the_interval_is_shown(tmp_path):
    rows = [timed("a", 0.9, 0.5, 0.02), timed("b", 0.8, 0.4, 0.01)]
    assert "0.500±0.020" in plain_table(rows)
    assert "± half of the 95 % interval" in plain_table(rows)
    page = write_html(rows, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "0.500±0.020" in page
    assert json_rows(rows)[0]["latency_ratio_high"] == pytest.approx(0.52)
    bars = plot_trials(rows, tmp_path / "bars.svg", cost="latency_ratio").read_text()
    plain = plot_trials(rows, tmp_path / "plain.svg", cost="macs_ratio").read_text()
    assert bars.count("LineCollection") > plain.count("LineCollection")


def test_a_page_has_one_legend_names_its_columns_and_follows_a_dark_system(tmp_path):
    rows = [timed("a", 0.9, 0.5, 0.02), timed("b", 0.8, 0.4, 0.01)]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        page = write_html(rows, tmp_path / "page.html").read_text(encoding="utf-8")
    pictures = [
        base64.b64decode(data).decode()
        for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    ]
    assert len(pictures) > 1
    assert ["Pareto front" in picture for picture in pictures] == [True] + [False] * (
        len(pictures) - 1
    )
    headings = re.findall(r'<th class="number">([^<]+)</th>', page)
    assert len(headings) == len(set(headings))
    assert "MACs ratio" in headings
    assert "prefers-color-scheme: dark" in page
    style = page[page.index("<style>") : page.index("</style>")]
    fixed = [line for line in style.splitlines() if re.search(r"#[0-9a-f]{3,6}", line)]
    # A colour that a rule fixes itself is the same in the dark.
    assert all(line.lstrip().startswith(("--", "a { color")) for line in fixed)


def test_points_on_one_another_leave_their_rims_to_be_seen():
    from nni_gconv.report.plot import _places, _sizes

    same = [row(name, 0.9, 0.5) for name in "abc"]
    far = row("d", 0.8, 0.3)
    sizes = _sizes(_places([*same, far], "macs_ratio"))
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3]
    assert len(set(_sizes(_places([row("a", 0.9, 0.5)], "macs_ratio")))) == 1
