"""The pictures of web UI, TensorBoard and report in the documentation, taken anew.

    python benchmarks/screenshots.py docs/images

Runs the quickstart (fourteen trials, minutes) in a folder of its own, looks at it in a headless
Chromium (Debian: apt install chromium chromium-driver) and stops it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from webui import Page, WebUI, browser, missing

from nni_gconv.experiment import experiment_file, preflight, start
from nni_gconv.experiment.watch import watch
from nni_gconv.report import collect, plot_layers, read_network, write_html

COLUMNS = ("params_ratio", "macs_ratio", "latency_ratio")
COMPARED = ("fpgm", "gconv")


def web_ui(ui: WebUI, images: Path) -> None:
    """Overview, list of trials, hyper-parameters, a trial's curve, TensorBoard."""
    ui.overview()
    ui.shot(images / "webui-overview.png", height=880)
    ui.detail()
    ui.add_columns(
        ["Trial No.", "Duration", "prune.method (space)", "prune.budget.macs (space)"]
        + [f"{name} (metric)" for name in COLUMNS]
    )
    ui.driver.set_window_size(1900, 1600)  # all columns and rows
    ui.shot(images / "webui-trials.png", element="//*[@id='tableList']")
    ui.driver.set_window_size(1500, 1000)
    ui.tab("Hyper-parameter")
    ui.axes()
    ui.shot(images / "webui-hyper-parameters.png", height=590)
    trials = {row["id"].split()[0]: row["space/prune.method"] for row in ui.table().values()}
    trial = next(key for key, method in trials.items() if method == "shuffle")
    ui.curve(trial)
    ui.shot(images / "webui-curve.png", element="//*[contains(@class,'ms-Dialog-main')]")
    ui.close_dialog()
    board = ui.tensorboard([k for k, name in trials.items() if name in ("slimming", "shuffle")])
    for view, tag, wanted, name in (
        ("scalars", "/(val_accuracy|loss|sparsity)$", "finetune/val_accuracy", "scalars"),
        ("histograms", "sparsify/gamma/layer2", "sparsify/gamma/layer2", "histograms"),
        ("images", "kernel_norms/layer3", "prune/kernel_norms/layer3", "blocks"),
    ):
        board.show(view, tag)
        board.wait(lambda wanted=wanted: wanted in board.text())
        board.shot(images / f"tensorboard-{name}.png")


def report(driver: Any, folder: Path, images: Path) -> None:
    """Take the pictures of the report's page, and of two networks side by side."""
    rows = collect(folder)
    with tempfile.TemporaryDirectory() as place:
        page = write_html(rows, Path(place) / "report.html", title="quickstart")
        driver.get(page.as_uri())
        Page(driver).shot(images / "report.png")
    half = {row.method: row for row in rows if row.budget == {"macs": 0.5}}
    networks = [read_network(half[method].folder or "", method) for method in COMPARED]
    plot_layers(networks, images / "compare.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="folder of the pictures")
    parser.add_argument(
        "--running", nargs=2, metavar=("URL", "FOLDER"),
        help="web UI and folder of an experiment that has ended, to look at instead",
    )  # fmt: skip
    args = parser.parse_args()
    if missing():
        raise SystemExit(missing())
    with tempfile.TemporaryDirectory() as place:
        experiment = None
        if args.running:
            url, folder = args.running[0], Path(args.running[1])
        else:
            os.environ["HOME"] = place
            experiment = start(preflight(experiment_file("quickstart")))
            url, folder = experiment.client.url, experiment.folder
        try:
            if experiment is not None:
                print(watch(experiment).message)
            with browser(Path(place) / "profile", 1500, 1000) as driver:
                report(driver, folder, args.images)
                web_ui(WebUI(driver, url), args.images)
        finally:
            if experiment is not None:
                experiment.stop()


if __name__ == "__main__":
    main()
