"""What is read off sensitivity curves, and the files they become."""

from __future__ import annotations

import csv
import math
import random
import re

import matplotlib
import pytest
import yaml
from rich.console import Console

from nni_gconv.analysis.curves import (
    Curve,
    Point,
    Score,
    Together,
    layer_ratios,
    tolerated_ratio,
)
from nni_gconv.analysis.plot import plot_curves
from nni_gconv.analysis.result import Sensitivity
from nni_gconv.errors import ConfigError
from nni_gconv.pruning.settings import PruneSettings


def curve(*accuracies, layers=("conv",), channels=20):
    """A curve at ratios 0, 0.05, ... with these accuracies."""
    points = [Point(a, 1 - a, i / 20, i) for i, a in enumerate(accuracies)]
    return Curve(tuple(layers), channels, tuple(points))


def found(*curves, dense=0.937, **more):
    together = Together(0.9, 0.3, 0.001, 0.5, 0.6)
    return Sensitivity("gamma", Score(dense, 0.2), curves, together, **more)


def test_the_ratio_is_the_largest_before_the_first_violation():
    ratios, accuracies = [0, 0.05, 0.10, 0.15], [93.7, 93.65, 93.5, 93.69]
    assert tolerated_ratio(ratios, accuracies, 93.7, 0.1) == 0.05


@pytest.mark.parametrize("dense", [0.937, 0.936, 0.935, 0.9])
def test_a_loss_of_exactly_the_tolerance_is_too_much(dense):
    accuracies = [dense, round(dense - 0.001, 3)]
    assert tolerated_ratio([0, 0.5], accuracies, dense, 0.001) == 0
    assert tolerated_ratio([0, 0.5], accuracies, dense, 0.0011) == 0.5


def test_better_than_dense_is_harmless_and_the_end_is_reached():
    assert tolerated_ratio([0.25, 0.5], [0.95, 0.94], 0.9, 0.001) == 0.5


def test_a_ratio_that_is_too_much_at_once_is_zero():
    assert tolerated_ratio([0.25, 0.5], [0.1, 0.9], 0.9, 0.001) == 0


def sets_of(ratios, *members):
    """One curve for each set, harmless up to these ratios."""
    return [
        curve(*[0.937] * round(1 + 20 * ratio), 0.1, layers=layers)
        for ratio, layers in zip(ratios, members, strict=True)
    ]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ((0.1, 0.2, 0.5), {"a": 0.1, "b": 0.2, "c": 0.5}),
        ((0, 0.2, 0.5), {"a": 0, "b": 0.2, "c": 0.5}),
        ((0.5, 0.2, 0.1), {"a": 0.5, "b": 0.5, "c": 0.1}),
        ((0.2, 0, 0.5), {"a": 0.2, "b": 0, "c": 0.5}),
    ],
)
def test_layers_of_several_sets_hold_none_beyond_its_ratio(allowed, expected):
    """As in residual networks that widen by zeros: later layers share their first channels."""
    members = [("a", "b", "c"), ("b", "c"), ("c",)]
    found = layer_ratios(sets_of(allowed, *members), Score(0.937, 0.2), 0.001)
    assert found == pytest.approx(expected)
    for ratio, layers in zip(allowed, members, strict=True):
        assert min(found[layer] for layer in layers) <= ratio


def test_no_set_loses_more_than_its_curve_allows_however_sets_overlap():
    rng = random.Random(0)
    for _ in range(200):
        members = [tuple(rng.sample("abcdef", rng.randint(1, 4))) for _ in range(5)]
        allowed = [rng.randrange(20) / 20 for _ in members]
        found = layer_ratios(sets_of(allowed, *members), Score(0.937, 0.2), 0.001)
        for ratio, layers in zip(allowed, members, strict=True):
            assert min(found[layer] for layer in layers) <= ratio


def test_the_tolerance_decides():
    one = found(curve(0.937, 0.93, 0.9, 0.8))
    assert [one.ratios(t)["conv"] for t in (0.001, 0.01, 0.05, 1)] == [0.0, 0.05, 0.1, 0.15]


def test_layers_alike_share_an_entry_and_whole_ones_have_none():
    harmless = [0.937] * 3
    sets = (
        curve(*harmless, layers=("a", "b")),
        curve(0.937, 0.1, layers=("c",)),
        curve(*harmless, layers=("d",)),
        curve(*harmless, layers=("e",)),
    )
    entries = found(*sets, keep={"d": {"round_to": 4}}).config_list()
    assert entries == [
        {"op_names": ["a", "b", "e"], "sparse_ratio": 0.1},
        {"op_names": ["d"], "sparse_ratio": 0.1, "round_to": 4},
    ]


@pytest.mark.slow
def test_the_files_hold_what_was_found(tmp_path):
    section = {"method": "slimming", "options": {"coupling": "max"}}
    sets = (curve(0.937, 0.937, 0.9, layers=("a", "b")), curve(0.937, 0.1, layers=("c",)))
    files = found(*sets, prune=section).save(tmp_path / "new")
    assert [file.name for file in files] == ["curves.csv", "curves.png", "prune.yml"]
    rows = list(csv.DictReader(files[0].open()))
    assert len(rows) == 5
    assert rows[2] == {
        "set": "0", "layers": "a b", "channels": "20", "ratio": "0.1", "removed": "2",
        "accuracy": "0.9", "loss": str(1 - 0.9),
    }  # fmt: skip
    assert files[1].read_bytes().startswith(b"\x89PNG")
    written = yaml.safe_load(files[2].read_text())["prune"]
    entries = [{"op_names": ["a", "b"], "sparse_ratio": 0.05}]
    assert PruneSettings(**written) == PruneSettings(**section, config_list=entries)


@pytest.mark.slow
def test_the_tolerance_of_the_files_can_be_another(tmp_path):
    one = found(curve(0.937, 0.93, 0.9, 0.8))
    *_, section = one.save(tmp_path, tolerance=0.05)
    (entry,) = yaml.safe_load(section.read_text())["prune"]["config_list"]
    assert entry["sparse_ratio"] == 0.1
    *_, section = one.save(tmp_path)
    assert yaml.safe_load(section.read_text())["prune"]["config_list"] == []
    assert "No layer can lose a channel" in section.read_text()


@pytest.mark.parametrize("count", [1, 20, 45])
def test_few_and_many_curves_are_drawn_and_losses_that_are_no_number_left_out(tmp_path, count):
    broken = Curve(("x",), 4, (Point(0.5, math.inf, 0, 0), Point(0.1, math.nan, 0.5, 2)))
    many = [curve(0.937, 0.937, layers=(f"layer{i}",)) for i in range(count - 1)]
    path = found(broken, *many).plot(tmp_path / "plot.svg")
    assert "<svg" in path.read_text()


def test_nothing_is_drawn_of_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no curve"):
        found().plot(tmp_path / "plot.png")
    with pytest.raises(ConfigError, match="unknown picture format"):
        found(curve(0.9)).plot(tmp_path / "plot.jpeg")


def test_the_table_shows_accuracies_and_ratios(capsys):
    one = found(curve(0.937, 0.937, 0.62, layers=("conv", "b", "c")))
    Console(width=100).print(one.table())
    line = next(line for line in capsys.readouterr().out.splitlines() if "conv" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "conv (+2)",
        "20",
        "62.00",
        "0.05",
    ]


def test_a_dict_of_plain_values():
    plain = found(curve(0.937, 0.937), skipped={"fc": "an output of the model"}).to_dict()
    assert plain["sets"][0]["sparse_ratio"] == 0.05
    assert plain["sets"][0]["points"][1] == {
        "accuracy": 0.937, "loss": 1 - 0.937, "ratio": 0.05, "removed": 1
    }  # fmt: skip
    assert plain["skipped"] == {"fc": "an output of the model"}


def test_the_picture_names_each_line_at_its_end_and_says_what_marks_mean(tmp_path):
    curves = [
        curve(0.937, 0.93, 0.5, layers=("stem", "layer1.0.conv2")),
        curve(0.937, 0.93, 0.5, layers=("layer1.0.conv1",)),  # ends at the same place
    ]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        file = plot_curves(curves, Score(0.937, 0.2), tmp_path / "s.svg", tolerance=0.01, title="t")
    text = file.read_text()
    for word in ("stem (+1)", "layer1.0.conv1", "less than 1 % lost", "dense", "of several layers"):
        assert word in text
    placed = re.findall(r'y="([\d.]+)"[^>]*>(?:stem|layer1)', text) or re.findall(
        r"translate\([\d.]+ ([\d.]+)\)[^>]*>(?:stem|layer1)", text
    )
    assert len(set(placed)) == 2  # moved apart


def test_without_streams_no_line_is_explained_as_one(tmp_path):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        file = plot_curves(
            [curve(0.9, 0.8)], Score(0.9, 0.2), tmp_path / "s.svg", tolerance=0.01, title="t"
        )
    assert "several layers" not in file.read_text()
