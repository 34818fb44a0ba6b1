"""The pictures of web UI, TensorBoard and report in the documentation, taken anew.

    python benchmarks/screenshots.py docs/images

Runs the quickstart (twelve trials, minutes) in a folder of its own, looks at it in a headless
Chromium (Debian: apt install chromium chromium-driver) and stops it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from webui import Page, WebUI, browser, missing

from nni_gconv.experiment import experiment_file, preflight, start
from nni_gconv.experiment.watch import watch
from nni_gconv.report import collect, plot_layers, read_network, write_html

COLUMNS = ("accuracy", "params_ratio", "macs_ratio", "latency_ratio")
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
    ui.shot(images / "webui-trials.png", element="//*[@id='tableList']")
    ui.tab("Hyper-parameter")
    ui.axes()
    ui.shot(images / "webui-hyper-parameters.png", height=590)
    trials = {row["id"].split()[0]: row["space/prune.method"] for row in ui.table().values()}
    trial = next(key for key, method in trials.items() if method == "shuffle")
    ui.curve(trial)
    ui.shot(images / "webui-curve.png", element="//*[contains(@class,'ms-Dialog-main')]")
    ui.close_dialog()
    board = ui.tensorboard([k for k, name in trials.items() if name in ("slimming", "shuffle")])
    for view, tag, wanted, file in (
        ("scalars", "", "tf-scalar-card", "scalars"),
        ("histograms", "sparsify/gamma/layer2", "tf-histogram-loader", "histograms"),
        ("images", "prune/kernel_norms/layer3", "tf-image-loader", "blocks"),
    ):
        board.show(view, tag)
        board.wait(lambda wanted=wanted: board.shown(wanted))
        board.shot(images / f"tensorboard-{file}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="folder of the pictures")
    parser.add_argument("--experiment", default="quickstart", help="file, or name of a shipped one")
    args = parser.parse_args()
    if missing():
        raise SystemExit(missing())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder  # paths in pictures are short, and nobody's
        file = Path(args.experiment)
        experiment = start(preflight(file if file.is_file() else experiment_file(args.experiment)))
        try:
            print(watch(experiment).message)
            with browser(Path(folder) / "profile", 1500, 1000) as driver:
                web_ui(WebUI(driver, experiment.client.url), args.images)
                rows = collect(experiment.folder)
                page = Page(driver)
                driver.get(write_html(rows, Path(folder) / "r.html", title="quickstart").as_uri())
                page.shot(args.images / "report.png")
        finally:
            experiment.stop()
        half = {row.method: row for row in rows if row.budget == {"macs": 0.5}}
        networks = [read_network(half[method].folder or "", method) for method in COMPARED]
        plot_layers(networks, args.images / "compare.png")


if __name__ == "__main__":
    main()
