"""GPU slots under NNI and torchrun, with a driver of our own that reports GPUs."""

import json
import os
import shutil
import signal
import time
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from nni_gconv.cli.signals import KEPT
from nni_gconv.experiment import experiment_file

from .conftest import Workshop

#: Of the recipe that is shipped: which GPUs a trial takes is the same for a small network.
SMALL = (
    "model.name=resnet8", "model.options.width=0.25", "data.train_size=256", "train.epochs=1",
    "report.latency=null",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIAL = """
import json, os, time
from pathlib import Path
import light_nni, nni
from nni_gconv.slots import gpu_slots
nni.get_next_parameter()
with gpu_slots() as gpus:
    begun = time.monotonic()
    time.sleep(1)
    held = {"gpus": gpus, "seen": os.environ["CUDA_VISIBLE_DEVICES"], "from": begun,
            "to": time.monotonic()}
Path(os.environ["NNI_OUTPUT_DIR"], "held.json").write_text(json.dumps(held))
nni.report_final_result(1.0)
"""


@pytest.fixture
def gpu_workshop(workshop, tmp_path):
    """A function that gives the workshop's machine so many GPUs; None is no driver."""

    def give(count: int | None) -> Workshop:
        fake = str(Path(__file__).parent / "fake_nvml")
        workshop.env["PYTHONPATH"] = os.pathsep.join([fake, workshop.env["PYTHONPATH"]])
        workshop.env["NNI_GCONV_SLOT_FOLDER"] = str(tmp_path / "slots")
        for name in ("CUDA_VISIBLE_DEVICES", "FAKE_GPUS"):
            workshop.env.pop(name, None)
        if count is not None:
            workshop.env["FAKE_GPUS"] = str(count)
        return workshop

    return give


def test_trials_that_run_together_hold_different_gpus(gpu_workshop):
    workshop = gpu_workshop(2)
    (workshop.folder / "trial.py").write_text(TRIAL)
    workshop.env["WARM_SCRIPT"] = "trial.py"
    file = workshop.write(
        trialCommand="python trial.py",
        trialConcurrency=3,  # more than there are: one waits
        searchSpace={"x": {"_type": "choice", "_value": [1, 2, 3, 4]}},
    )
    finished = workshop.run("create", str(file), timeout=600)
    assert finished.code == 0, finished.err
    (folder,) = workshop.experiments
    files = folder.glob("environments/*/trials/*/held.json")
    held = [json.loads(file.read_text()) for file in files]
    assert len(held) == 4
    for one in held:
        assert one["seen"] == ",".join(one["gpus"])
        assert one["gpus"] in (["0"], ["1"])
    for one, other in combinations(held, 2):
        if one["from"] < other["to"] and other["from"] < one["to"]:
            assert one["gpus"] != other["gpus"]


def test_the_multi_gpu_experiment_fills_the_gpus(gpu_workshop):
    workshop = gpu_workshop(2)
    folder = shutil.copytree(experiment_file("multi-gpu").parent, workshop.folder / "multi-gpu")
    data = yaml.safe_load((folder / "experiment.yml").read_text())
    data["trialCommand"] += "".join(f" -o {text}" for text in (*SMALL, "finetune=null"))
    data["trialConcurrency"] = 1
    data["maxTrialNumber"] = 2
    (folder / "experiment.yml").write_text(yaml.safe_dump(data))
    finished = workshop.run(
        "create", str(folder / "experiment.yml"), "--gpus", "1", "--json", timeout=600
    )
    assert finished.code == 0, finished.err
    told = []
    for row in json.loads(finished.out):
        texts = [file.read_text() for file in Path(row["folder"]).glob("trial.*")]
        told += [line for text in texts for line in text.splitlines() if line.startswith("GPU ")]
    assert sorted(line.split(" on ")[0] for line in told) == ["GPU 0 of 0, 1", "GPU 1 of 0, 1"]


def test_more_gpus_a_trial_are_as_many_processes(gpu_workshop):
    workshop = gpu_workshop(3)
    shutil.copy(experiment_file("multi-gpu", "recipe.yml"), workshop.folder)
    short = [
        word for text in (*SMALL, "train.share=null", "finetune.epochs=1") for word in ("-o", text)
    ]
    finished = workshop.run(
        "run", "recipe.yml", "--gpus", "2", "--output", "out", "--quiet", "--json", *short,
        timeout=600,
    )  # fmt: skip
    assert finished.code == 0, finished.err
    assert "GPU 0, 1 of 0, 1, 2" in finished.err
    assert json.loads(finished.out)["metrics"]["macs_ratio"] <= 0.5


def test_ctrl_c_ends_all_processes_with_one_line(gpu_workshop):
    workshop = gpu_workshop(2)
    del workshop.env["WARM_SOCKET"]  # the signal goes to a process group
    shutil.copy(experiment_file("multi-gpu", "recipe.yml"), workshop.folder)
    long = ["-o", "train.epochs=1000", "-o", "train.share=null", "-o", "data.batch_size=16"]
    command = "run", "recipe.yml", "--gpus", "2", "--output", "out", *long
    process = workshop.start(*command, start_new_session=True)
    file = workshop.folder / "out/train/checkpoint.pt"
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    ended = workshop.finish(process)
    assert ended.code == 130
    assert "Traceback" not in ended.err
    (line,) = (line for line in ended.err.splitlines() if "interrupted" in line)
    again = f"nni-gconv run recipe.yml --resume {' '.join(long)} --output out --gpus 2"
    assert line == f"interrupted; {KEPT}{again}"


def test_no_gpu_is_said_at_once_and_the_trial_goes_on(gpu_workshop):
    workshop = gpu_workshop(None)
    shutil.copy(experiment_file("multi-gpu", "recipe.yml"), workshop.folder)
    refused = workshop.run("run", "recipe.yml", "--gpus", "2", "-o", "device=cuda", timeout=300)
    assert refused.code == 2
    assert "no NVIDIA driver" in refused.err
    command = "nni-gconv run recipe.yml"
    file = workshop.write(trialCommand=command)
    checked = workshop.run("create", "--check", str(file), timeout=300)
    assert checked.code == 0
    assert "no GPU on this machine (no NVIDIA driver" in checked.err
