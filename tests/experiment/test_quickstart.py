"""The quickstart as a user runs it, to its end."""

import itertools
import json
from pathlib import Path

import pytest

from nni_gconv.pruning.registry import CRITERIA, METHODS

#: Methods of the papers; criteria that only rank are compared elsewhere.
COMPARED = sorted(METHODS.keys() - CRITERIA.keys())

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_quickstart_gives_small_networks_that_are_nearly_as_good(workshop, still_running):
    output = workshop.folder / "kept"
    # How sure latencies are is not looked at here, nor which form of a layer is the quickest.
    short = "report.latency.max_seconds=0.25", "export.optimize=false", "finetune.epochs=5"
    changes = [word for change in short for word in ("-o", change)]
    finished = workshop.run("quickstart", "--json", "--output", str(output), *changes, timeout=850)
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)
    compared = {(row["method"], row["budget"]["macs"]) for row in rows}
    methods = ["second_order", *COMPARED, "nni:L1NormPruner"]
    assert compared == set(itertools.product(methods, [0.5, 0.25]))
    assert len(rows) == len(compared)
    for row in rows:
        (metric, limit), *_ = row["budget"].items()
        assert metric == "macs"
        # Inside the budget, and within 1 % of the dense network's cost of it.
        assert limit - 0.01 <= row["macs_ratio"] <= limit
        assert 0 < row["params_ratio"] < 1
        assert row["latency_ratio"] > 0
        result = json.loads((Path(row["folder"]) / "result.json").read_text())
        assert result["recipe"]["report"]["latency"]["max_seconds"] == 0.25  # as asked
    assert len({row["accuracy_dense"] for row in rows}) == 1  # one dense network for all
    # Of the channel and of the group methods alike.
    good = {row["method"]: row for row in rows if row["accuracy"] >= row["accuracy_dense"] - 0.02}
    assert {"second_order", "fpgm", "gconv"} <= set(good)
    assert all(row["accuracy_small"] > row["accuracy_masked"] for row in rows)  # all are fitted
    (folder,) = [path.parent for path in output.glob("[!_]*/db")]
    assert still_running(folder) == []
    picture = folder / "report" / "accuracy_vs_macs.png"
    assert picture.is_file()
    assert str(picture) in finished.err
    for method in ("second_order", *COMPARED):
        assert_reloadable(next(row for row in rows if row["method"] == method))


def assert_reloadable(row):
    """Rebuild a trial's small network from its file and the untouched architecture."""
    import torch

    from nni_gconv.artefact import load_compact
    from nni_gconv.training.zoo import create_model

    file = Path(row["folder"]) / "compact.safetensors"
    model = load_compact(file, lambda: create_model("resnet20", in_channels=1, width=0.5))
    assert sum(p.numel() for p in model.parameters()) == row["params"]
    assert model.eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
