"""What a user sees: web UI, TensorBoard and the report of a real experiment, in a real browser.

The values a page shows are compared with those in the trials' own files. Pictures of all pages are
kept in the folder that the variable ``NNI_GCONV_SCREENSHOTS`` names, else in pytest's own.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nni_gconv.compat.nni_trial import rounded
from nni_gconv.experiment import preflight, start
from nni_gconv.experiment.watch import watch
from nni_gconv.report import collect, write_html

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("selenium", reason="selenium is not installed")
webui = pytest.importorskip("webui")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(webui.missing() is not None, reason=webui.missing() or ""),
]

COLUMNS = ("params", "params_ratio", "macs", "macs_ratio", "latency_ms")


@dataclass
class Done:
    """An experiment that has ended and whose manager runs on."""

    experiment: Any
    results: dict[str, dict[str, Any]]
    folders: dict[str, Path]
    url: str


@pytest.fixture(scope="module")
def done(tmp_path_factory, warm):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("NNI_CONFIG_DIR", str(home / "config"))
        root = Path(__file__).parents[2]
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        for key, value in warm({**os.environ}).items():
            patch.setenv(key, value)
        plan = preflight(Path(__file__).parent / "experiment" / "experiment.yml")
        experiment = start(plan)
        try:
            outcome = watch(experiment)
            assert outcome.ok, outcome
            folders = {
                file.parent.name: file.parent
                for file in experiment.folder.glob("environments/*/trials/*/result.json")
            }
            results = {
                key: json.loads((folder / "result.json").read_text())
                for key, folder in folders.items()
            }
            assert len(results) == 2
            yield Done(experiment, results, folders, f"http://127.0.0.1:{plan.port}")
        finally:
            experiment.stop()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    given = os.environ.get("NNI_GCONV_SCREENSHOTS")
    return Path(given) if given else tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with webui.browser(tmp_path_factory.mktemp("profile"), 1600, 1100) as driver:
        yield driver


@pytest.fixture(scope="module")
def ui(driver, done):
    return webui.WebUI(driver, done.url)


def method(done, name):
    """Return the trial of a method."""
    return next(key for key, result in done.results.items() if result["method"] == name)


def reported(done, trial):
    """Return the accuracies that a trial reported, epoch by epoch."""
    lines = (done.folders[trial] / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["val_accuracy"] for line in lines]


def test_the_overview_shows_the_end_and_the_best(ui, done, pictures):
    text = ui.overview()
    ui.shot(pictures / "webui-overview.png")
    best = max(result["metrics"]["default"] for result in done.results.values())
    assert "DONE" in text
    assert done.experiment.id in text
    assert f"{best:.6f}" in text
    assert "2/2" in text


def test_the_list_of_trials_shows_our_numbers(ui, done, pictures):
    ui.detail()
    ui.add_columns([f"{name} (metric)" for name in COLUMNS])
    ui.add_columns(["prune.method (space)"])
    ui.shot(pictures / "webui-trials.png", element="//*[@id='tableList']")
    table = ui.table()
    assert set(table) == set(done.results)
    for key, result in done.results.items():
        shown = table[key]
        assert shown["status"] == "SUCCEEDED"
        assert float(shown["latestAccuracy"].split()[0]) == pytest.approx(
            result["metrics"]["default"], abs=1e-6
        )
        assert shown["space/prune.method"] == result["method"]
        for name in COLUMNS:
            assert float(shown[f"metric/{name}"]) == rounded(result["metrics"])[name]
    points = {tuple(point[:2]) for line in ui.charts() for point in line["data"]}
    numbers = {int(table[key]["sequenceId"]): r for key, r in done.results.items()}
    assert {(n, rounded(r["metrics"])["default"]) for n, r in numbers.items()} <= points


def test_parameters_of_nested_choices_can_be_read(ui, done, pictures):
    ui.detail()
    ui.tab("Hyper-parameter")
    axes = ui.axes()
    ui.shot(pictures / "webui-hyper-parameters.png", height=620)
    assert set(axes["prune.method"]) == {result["method"] for result in done.results.values()}
    assert axes["prune.budget.macs"] == ["0.5"]
    assert {"default", *COLUMNS} <= set(axes)


def test_a_trials_curve_has_a_point_for_each_epoch(ui, done, pictures):
    trial = method(done, "shuffle")
    ui.detail()
    points = ui.curve(trial)
    ui.shot(pictures / "webui-curve.png")
    assert points == reported(done, trial)
    assert len(points) == 2 + 4  # sparsify and finetune


def test_the_tensorboard_button_shows_scalars_histograms_and_blocks(ui, done, pictures, driver):
    ui.detail()
    board = ui.tensorboard(list(done.results))
    assert urllib.parse.urlsplit(board.url).hostname in ("127.0.0.1", "localhost")
    runs = board.wait(lambda: len(board.data("runs")) == 2 and board.data("runs"))
    for key in done.results:
        (run,) = [name for name in runs if key in name]
        query = urllib.parse.urlencode({"run": run, "tag": "finetune/val_accuracy"})
        scalars = board.data(f"plugin/scalars/scalars?{query}")
        assert [step for _, step, _ in scalars] == [1, 2, 3, 4]
        values = [value for *_, value in scalars]
        assert values == pytest.approx(reported(done, key)[-4:], rel=1e-6)
    for view, tag, name in (
        ("scalars", "finetune/val_accuracy", "scalars"),
        ("histograms", "finetune/gamma/bn1", "histograms"),
        ("images", "prune/kernel_norms/layer3.0.conv2", "blocks"),
    ):
        board.show(view, tag)
        board.wait(lambda tag=tag: tag in board.text())
        board.shot(pictures / f"tensorboard-{name}.png")
    grouped = {method(done, "shuffle")}
    tags = board.data("plugin/images/tags")
    assert {key for key in done.results for run in tags if key in run and tags[run]} == grouped
    driver.close()
    driver.switch_to.window(driver.window_handles[0])


def test_the_report_is_a_page_that_sorts_and_fetches_nothing(done, driver, pictures, tmp_path):
    rows = collect(done.experiment.folder)
    file = write_html(rows, tmp_path / "report.html", title="two trials")
    page = webui.Page(driver)
    driver.get(file.as_uri())
    assert driver.execute_script("return performance.getEntriesByType('resource')") == []
    sources = [image.get_attribute("src") for image in page.find("//img")]
    assert sources and all(source.startswith("data:") for source in sources)

    heads = [head.text for head in page.find("//table[@id='trials']//th")]
    cell = heads.index("MACs") + 1

    def macs():
        cells = page.find(f"//table[@id='trials']//td[{cell}]")  # in three digits; here in all
        return [found.get_attribute("title") or found.text for found in cells]

    for _ in range(2):
        page.click("//table[@id='trials']//th[normalize-space()='MACs']")
    assert macs() == [f"{row.macs:,.0f}" for row in sorted(rows, key=lambda r: -r.macs)]
    page.click("//table[@id='trials']//th[normalize-space()='MACs']")
    assert macs() == [f"{row.macs:,.0f}" for row in sorted(rows, key=lambda r: r.macs)]
    page.shot(pictures / "report.png")
    link = page.find("//table[@id='trials']//a")[-1]
    target = link.get_attribute("href").rpartition("#")[2]
    driver.execute_script("arguments[0].click()", link)
    assert page.find(f"//details[@id='{target}'][@open]//table[@class='layers']")
