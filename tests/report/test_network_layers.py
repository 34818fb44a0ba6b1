"""Layers of small networks: read from their files, drawn, compared, put on a page."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from commands import call
from filelock import FileLock
from tiny_recipes import tiny
from torch import nn

from nni_gconv import save_compact
from nni_gconv.artefact import load_compact
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.profiling import count
from nni_gconv.recipe import run_recipe
from nni_gconv.report import (
    TrialRow,
    collect,
    compare_networks,
    layer_records,
    plot_layers,
    read_network,
    state_lines,
    write_html,
    write_layers_csv,
)
from nni_gconv.speedup import compare_sizes, take_out
from nni_gconv.training.zoo import create_model

EXAMPLE = torch.zeros(1, 1, 8, 8)


def dense_net():
    return create_model("resnet8", num_classes=10, in_channels=1, width=0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs of one network: narrower layers, and groups."""
    folder = tmp_path_factory.mktemp("runs")
    methods = {
        "narrow": {"method": "fpgm"},
        "grouped": {"method": "gconv", "options": {"restarts": 0}},
    }
    for name, method in methods.items():
        recipe = tiny(
            name=name,
            model={"name": "resnet8", "options": {"width": 0.5}},
            prune={**method, "budget": {"macs": 0.6}},
        )
        run_recipe(recipe, output=folder / name, quiet=True)
    return folder


# -- what is read ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["narrow", "grouped"])
def test_layers_add_up_to_the_networks_own_counts(runs, name):
    network = read_network(runs / name)
    small = load_compact(runs / name / "compact.safetensors", dense_net)
    assert (network.params, network.macs) == tuple(count(small, EXAMPLE))
    before = count(dense_net(), EXAMPLE)
    assert sum(layer.params for layer in network.dense.values()) == before.params
    assert sum(layer.macs for layer in network.dense.values()) == before.macs
    assert list(network.layers) == list(network.dense)


@pytest.mark.slow
def test_widths_and_groups_are_those_of_the_modules(runs):
    narrow, grouped = (read_network(runs / name) for name in ("narrow", "grouped"))
    small = load_compact(narrow.file, dense_net)
    conv = small.layer2[0].conv1
    assert narrow.layers["layer2.0.conv1"].widths() == f"{conv.in_channels}→{conv.out_channels}"
    assert narrow.dense["layer2.0.conv1"].widths() == "8→16"
    assert any(layer.groups > 1 for layer in grouped.layers.values())
    assert all(grouped.layers[name].outputs == x.outputs for name, x in grouped.dense.items())
    assert grouped.gathers == json.loads((runs / "grouped" / "stages.json").read_text())["speedup"][
        "gathers"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_file_without_costs_still_tells_widths_and_parameters(runs, tmp_path):
    full = read_network(runs / "grouped")
    small = load_compact(full.file, dense_net)
    bare = read_network(save_compact(small, tmp_path / "bare.safetensors"))
    assert (bare.params, bare.macs, bare.dense) == (full.params, None, {})
    assert {name: layer.widths() for name, layer in bare.layers.items()} == {
        name: layer.widths() for name, layer in full.layers.items()
    }
    compared = compare_networks(bare, full)
    assert compared.to_dict()["a"]["macs"] is None
    assert compared.to_dict()["b"]["macs"] == full.macs


@pytest.mark.slow
def test_layers_that_went_with_their_block(runs, tmp_path):
    small = dense_net()
    take_out(small, "layer2.0", ["shortcut", "nn.ReLU"])
    sizes = compare_sizes(small, dense_net(), EXAMPLE)
    full = read_network(save_compact(small, tmp_path / "full.safetensors", layers=sizes))
    bare = read_network(save_compact(small, tmp_path / "bare.safetensors"))
    assert list(full.layers) == list(full.dense)
    gone = full.layers["layer2.0.conv1"]
    assert (gone.widths(), gone.params, gone.macs) == ("8→0", 0, 0)
    assert (full.params, full.macs) == tuple(count(small, EXAMPLE))
    narrow = read_network(runs / "narrow")
    for network in (full, bare):
        compared = compare_networks(network, narrow)
        assert "without 1 blocks" in compared.legend()
        row = next(r for r in compared.to_dict()["layers"] if r["name"] == "layer2.0.conv1")
        assert row["b"]["outputs"] > 0
        assert not row["equal"]
        plot_layers([network, narrow], tmp_path / "ab.png")


def test_a_list_of_layers_that_is_no_list_is_a_clear_error(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    file = save_compact(net, tmp_path / "m.safetensors", layers={"small": [{"name": "0"}]})
    with pytest.raises(CheckpointError, match="list of layers cannot be read"):
        read_network(file)


# -- naming a trial -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(runs, tmp_path_factory):
    """A home with an experiment of two trials."""
    folder = tmp_path_factory.mktemp("home")
    trials = folder / "nni-experiments" / "abcdefgh" / "environments" / "local-env" / "trials"
    for key, name in (("xyAB1", "narrow"), ("xzCD2", "grouped"), ("new00", None)):
        if name is None:
            (trials / key).mkdir(parents=True)
        else:
            shutil.copytree(runs / name, trials / key)
    return folder


def test_a_trial_is_named_by_its_experiment_and_the_beginning_of_its_id(
    home, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    experiment = home / "nni-experiments" / "abcdefgh"
    trials = experiment / "environments" / "local-env" / "trials"
    for source in ("abcdefgh/xyAB1", "abcdefgh/xy", experiment / "xyAB1", trials / "xyAB1"):
        assert read_network(source).file == trials / "xyAB1" / "compact.safetensors"
    for source, message in (
        ("abcdefgh/x", r"several trials begin so \(xyAB1, xzCD2\)"),
        ("abcdefgh/q", r"has no such trial \(new00, xyAB1, xzCD2\)"),
        ("abcdefgh", r"which trial of it\? \(new00, xyAB1, xzCD2\)"),
        (experiment, r"which trial of it\? \(new00, xyAB1, xzCD2\)"),
        ("abcdefgh/new00", "no small network yet"),
        ("abcdefgg/xyAB1", "did you mean 'abcdefgh'"),
        ("nowhere/at/all", "neither a file, a run's folder nor EXPERIMENT/TRIAL"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_network(source)


# -- comparing ------------------------------------------------------------------------------------


def test_compare_shows_every_layer_and_the_totals(runs, capfd):
    code, out, _ = call(capfd, "compare", runs / "narrow", runs / "grouped")
    assert code == 0
    a, b = read_network(runs / "narrow"), read_network(runs / "grouped")
    for name in ("layer2.0.conv1", "layer3.0.conv2", "linear"):
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        for shown in (a.dense[name].widths(), a.layers[name].widths(), b.layers[name].widths()):
            assert shown in line
        assert f"{a.layers[name].params:,}" in line
        assert f"{b.layers[name].macs:,}" in line
    total = next(line for line in out.splitlines() if line.split()[:1] == ["total"])
    assert total.split()[1:] == [f"{n:,}" for n in (a.params, b.params, a.macs, b.macs)]
    words = " ".join(out.split())  # lines are broken where the names of the folders end
    assert "fpgm macs 0.6" in words
    assert "gconv macs 0.6" in words


def test_compare_as_json(runs, capfd):
    code, out, _ = call(capfd, "compare", runs / "narrow", runs / "grouped", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["a"]["params"] == read_network(runs / "narrow").params
    assert found["dense"] == {
        "params": count(dense_net(), EXAMPLE).params,
        "macs": count(dense_net(), EXAMPLE).macs,
    }
    layer = next(layer for layer in found["layers"] if layer["b"]["groups"] > 1)
    assert not layer["equal"]
    assert layer["b"]["groups"] > layer["dense"]["groups"] == 1
    twice = json.loads(call(capfd, "compare", runs / "narrow", runs / "narrow", "--json")[1])
    assert all(layer["equal"] for layer in twice["layers"])


def test_different_architectures_are_refused_with_the_place(runs, capfd, tmp_path):
    def saved(model, name):
        return save_compact(model, tmp_path / name)

    net = dense_net()
    deeper = saved(create_model("resnet14", num_classes=10, in_channels=1), "deeper.safetensors")
    code, out, err = call(capfd, "compare", saved(net, "net.safetensors"), deeper)
    assert (code, out) == (2, "")
    assert "are of different architectures: only" in err
    assert err.count("\n") == 1
    one = saved(nn.Sequential(nn.Conv2d(1, 2, 1)), "one.safetensors")
    other = saved(nn.Sequential(nn.Linear(1, 2)), "other.safetensors")
    with pytest.raises(ConfigError, match=r"0 is a Conv2d in .*, a Linear in"):
        compare_networks(read_network(one), read_network(other))
    with pytest.raises(ConfigError, match="and Sequential"):
        compare_networks(read_network(runs / "narrow"), read_network(one))


def test_the_same_layers_that_began_otherwise_are_another_architecture(runs, tmp_path):
    recipe = tiny(prune={"method": "fpgm", "budget": {"macs": 0.6}}, finetune=None)
    run_recipe(recipe, output=tmp_path / "thin", quiet=True)
    with pytest.raises(ConfigError, match="conv1 began as 1→8 in half, as 1→4 in quarter"):
        compare_networks(
            read_network(runs / "narrow", "half"), read_network(tmp_path / "thin", "quarter")
        )


# -- pictures and tables --------------------------------------------------------------------------


def test_the_picture_names_layers_networks_and_groups(runs, tmp_path):
    import matplotlib

    networks = [read_network(runs / name, name) for name in ("narrow", "grouped")]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = plot_layers(networks, tmp_path / "l.svg", title="two").read_text()
    for word in ("layer3.0.conv2", "narrow", "grouped", "dense", "groups", "MACs (small / dense)"):
        assert word in text
    assert "bn1" not in text
    with pytest.raises(ConfigError, match="0 networks"):
        plot_layers([], tmp_path / "l.png")


@pytest.mark.slow
def test_layers_as_csv_and_json(runs, capfd, tmp_path):
    networks = [read_network(runs / name, name) for name in ("narrow", "grouped")]
    with write_layers_csv(networks, tmp_path / "l.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    records = layer_records(networks)
    assert [(line["network"], line["name"]) for line in read] == [
        (record["network"], record["name"]) for record in records
    ]
    assert sum(int(line["macs"]) for line in read) == sum(network.macs for network in networks)
    code, _, err = call(capfd, "report", runs, "--layers", tmp_path / "l.json")
    assert code == 0
    assert f"saved {tmp_path / 'l.json'}" in err
    written = json.loads((tmp_path / "l.json").read_text())
    assert {record["network"] for record in written} == {"narrow", "grouped"}
    assert call(capfd, "report", runs, "--layers", tmp_path / "l.png")[0] == 0
    code, _, err = call(capfd, "report", runs, "--layers", tmp_path / "l.bmp")
    assert code == 2
    assert "picture format" in err


# -- the page -------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page refers to and what its first table shows."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.cells, self.text = [], set(), [], ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag == "td":
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag != "td"

    def handle_data(self, data):
        self.text += data
        if self._in_cell:
            self.cells[-1] += data


def assert_self_contained(text):
    page = Page(text)
    assert all(ref.startswith(("data:", "#")) for ref in page.references), page.references
    assert not re.search(r"https?://|@import|url\(", text)
    assert not {"link", "iframe", "object", "embed"} & page.tags
    return page


def test_the_page_holds_everything_and_fetches_nothing(runs, capfd, tmp_path):
    file = tmp_path / "new" / "report.html"
    code, out, err = call(capfd, "report", runs, "--html", file)
    assert code == 0
    assert "2 trials: 2 succeeded" in out
    assert f"saved {file}" in err
    page = assert_self_contained(file.read_text(encoding="utf-8"))
    rows = {row.trial: row for row in collect(runs)}
    for name, row in rows.items():
        assert f"{100 * row.accuracy:.2f}" in page.cells
        assert f"{100 * row.delta:+.2f}" in page.cells
        assert f"{row.macs:,.0f}" in page.cells
        network = read_network(runs / name)
        assert network.layers["layer3.0.conv2"].widths() in page.cells
    assert sum(ref.startswith("data:image/svg+xml;base64,") for ref in page.references) == 2
    assert "Validation accuracy over 4 epochs (train, finetune)" in page.text


def test_the_page_of_broken_trials_shows_what_they_said_as_text(runs, tmp_path):
    experiment = tmp_path / "exp"
    trials = experiment / "environments" / "local-env" / "trials"
    (experiment / "db").mkdir(parents=True)
    shutil.copytree(runs / "narrow", trials / "half")
    text = (trials / "half" / "result.json").read_text()
    (trials / "half" / "result.json").write_text(text[: len(text) // 2])
    (trials / "half" / "compact.safetensors").write_bytes(b"damaged")
    (trials / "empty").mkdir()
    (trials / "wrong").mkdir()
    (trials / "wrong" / "trial.stderr").write_text("<script>alert(1)</script>\nerror: <b>bad</b>\n")
    (trials / "wrong" / "result.json").write_text("<script>alert(2)</script>")
    rows = collect(experiment)
    assert {row.trial: row.status for row in rows}["empty"] == "running"  # nothing says otherwise
    page = assert_self_contained(
        write_html(rows, tmp_path / "b.html", title="<script>3</script>").read_text()
    )
    text = (tmp_path / "b.html").read_text()
    assert text.count("<script>") == 1  # the page's own
    assert "alert(1)" in page.text
    assert "error: <b>bad</b>" in page.text


def test_the_page_of_no_trial_is_a_page(tmp_path):
    assert "No trials yet" in write_html([], tmp_path / "e.html").read_text()


# -- unfinished runs ------------------------------------------------------------------------------


def test_runs_that_are_not_finished_say_how_far_they_are(runs, tmp_path):
    folder = tmp_path / "some"
    for name in ("going", "left"):
        shutil.copytree(runs / "narrow", folder / name)
        (folder / name / "result.json").unlink()
    (folder / "left" / "stages.json").write_text('{"train": {}}')
    with (folder / "left" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "fine')  # killed while it wrote
    with FileLock(folder / "going" / ".lock"):
        rows = {row.trial: row for row in collect(folder)}
    assert rows["going"].status == "running"
    assert rows["going"].progress == "report finished"
    assert rows["left"].status == "stopped"
    assert re.fullmatch(r"finetune, epoch 2 of 2, accuracy [\d.]+ %", rows["left"].progress)
    assert {row.status for row in collect(folder)} == {"stopped"}
    lines = state_lines(list(rows.values()))
    assert lines[0] == "2 trials: 1 running, 1 stopped"
    assert lines[2].startswith("left stopped: finetune, epoch 2")


def test_state_lines_show_errors_on_one_line_each():
    rows = [
        TrialRow("a", "succeeded"),
        TrialRow("b", "failed", error="bad\n  thing"),
        TrialRow("c", "succeeded"),
    ]
    assert state_lines(rows) == ["3 trials: 2 succeeded, 1 failed", "b failed: bad thing"]
    assert state_lines([]) == []
