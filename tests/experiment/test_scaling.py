"""What docs/scaling.md says of a trial of several processes and of shared folders."""

import json
import re
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
RECIPE = {
    "device": "cpu",
    "threads": 1,
    "model": {"name": "resnet8", "options": {"width": 0.25}},
    "data": {"name": "digits", "train_size": 200, "test_size": 40, "batch_size": 16},
    "train": {"epochs": 2},
    "prune": {"method": "fpgm", "budget": {"macs": 0.6}},
    "report": {"latency": None},
}


def test_a_trial_of_two_processes_that_writes_to_shared_storage(workshop):
    by_torchrun, shared = re.findall(r"^trialCommand: (.*)$", PAGE, flags=re.MULTILINE)
    assert shared.startswith("nni-gconv run recipe.yml --output /shared/")
    place = workshop.folder / "shared"
    command = by_torchrun + shared.removeprefix("nni-gconv run recipe.yml")
    (workshop.folder / "recipe.yml").write_text(yaml.safe_dump(RECIPE))
    space = {"seed": {"_type": "choice", "_value": [7]}}
    file = workshop.write(
        trialCommand=command.replace("/shared", str(place)), trialConcurrency=1, searchSpace=space
    )
    workshop.env["OMP_NUM_THREADS"] = "1"
    finished = workshop.run("create", str(file), "--json", timeout=250)
    assert finished.code == 0, finished.err
    (row,) = json.loads(finished.out)
    (experiment,) = workshop.experiments
    folder = place / experiment.name / row["trial"]
    result = json.loads((folder / "result.json").read_text())
    assert (result["seed"], row["parameters"]) == (7, {"seed": 7})
    assert result["metrics"]["accuracy"] == pytest.approx(row["accuracy"])
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]  # by one process
    report = workshop.run("report", str(place / experiment.name), "--json")
    assert [row["method"] for row in json.loads(report.out)] == ["fpgm"]
