"""The log: one line an epoch, TensorBoard, and NNI's own channel."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from nni_gconv import compat
from nni_gconv.errors import ConfigError, DataError
from nni_gconv.training.logs.metric_log import MetricLog

RECORD = {"loss": 0.5, "val_accuracy": 0.75, "lr": 0.1, "sparsity": 0.25}


def test_tensorboard_events(tmp_path, monkeypatch):
    # Names of files count the writers of a process, and TensorBoard sorts names as text.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    with MetricLog(tmp_path, nni=False) as log:
        log.write("train", 1, RECORD)
        log.write("train", 2, {**RECORD, "loss": 0.25})
        log.histogram("scores/conv", torch.randn(10), 1)
        log.image("masks/conv", torch.zeros(1, 4, 4), 1)
    with MetricLog(tmp_path, nni=False) as log:
        log.write("train", 2, RECORD)  # a resumed run says it again
        log.write("train", 3, RECORD)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 0.5), (2, 0.25), (3, 0.5),
    ]  # fmt: skip
    assert events.Tags()["histograms"] == ["scores/conv"]
    assert events.Tags()["images"] == ["masks/conv"]


def read_events(folder):
    """All that TensorBoard's files hold, as (tag, step), with what stands twice twice."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return sorted(
        (value.tag, event.step)
        for file in sorted(folder.glob("events.out.tfevents.*"))
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def test_a_run_that_goes_on_writes_nothing_twice_and_what_was_lost(tmp_path):
    values, picture = torch.randn(10), torch.zeros(1, 4, 4)
    with MetricLog(tmp_path, nni=False) as log:
        log.histogram("train/gamma/bn", values, 1)
        log.image("prune/kernel_norms/conv", picture, 0)
        log.write("train", 1, {"loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:  # killed before TensorBoard's turn
        file.write('{"stage": "train", "epoch": 2, "loss": 0.25}\n')
    with MetricLog(tmp_path, nni=False) as log:
        for epoch in (1, 2):
            log.histogram("train/gamma/bn", values, epoch)
            log.image("prune/kernel_norms/conv", picture, 0)
            log.write("train", epoch, {"loss": 1.0 / 2**epoch})
    assert read_events(tmp_path / "tensorboard") == [
        ("prune/kernel_norms/conv", 0),
        ("train/gamma/bn", 1),
        ("train/gamma/bn", 2),
        ("train/loss", 1),
        ("train/loss", 2),
    ]


def test_a_stage_that_begins_again_leaves_no_events_of_its_first_try(tmp_path):
    with MetricLog(tmp_path, nni=False) as log:
        for stage in ("train", "finetune"):
            log.histogram(f"{stage}/gamma/bn", torch.ones(3), 1)
            log.write(stage, 1, {"loss": 0.5})
    with MetricLog(tmp_path, nni=False) as log:
        log.forget("train")
        log.write("train", 1, {"loss": 0.25})
    found = read_events(tmp_path / "tensorboard")
    assert found == [("finetune/gamma/bn", 1), ("finetune/loss", 1), ("train/loss", 1)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == [0.25]


def test_a_histogram_of_what_is_not_finite_is_no_error(tmp_path):
    with MetricLog(tmp_path, nni=False) as log:
        log.histogram("a", torch.tensor([1.0, math.nan, math.inf, 1.0]), 1)
        log.histogram("b", torch.tensor([math.nan]), 1)
    assert read_events(tmp_path / "tensorboard") == [("a", 1)]


def test_lines_are_flat_json_in_order(tmp_path):
    with MetricLog(tmp_path / "new" / "folder", tensorboard=False, nni=False) as log:
        assert log.write("train", 1, {"loss": np.float32(0.5), "count": 3})
        assert not log.write("train", 1, {"loss": 9.0})
        assert log.write("finetune", 1, {"loss": 0.25})
        lines = log.path.read_text().splitlines()
    assert lines[0] == '{"stage": "train", "epoch": 1, "loss": 0.5, "count": 3}'
    assert [json.loads(line)["stage"] for line in lines] == ["train", "finetune"]
    assert not (tmp_path / "new" / "folder" / "tensorboard").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "'loss' is nan"),
        (math.inf, "'loss' is inf"),
        ("0.5", "'loss' is a str"),
        (True, "'loss' is a bool"),
        (None, "'loss' is a NoneType"),
        ({"a": 1}, "'loss' is a dict"),
    ],
)
def test_only_finite_numbers(tmp_path, value, message):
    with MetricLog(tmp_path, tensorboard=False) as log:
        with pytest.raises(ConfigError, match=message):
            log.write("train", 1, {"loss": value})
        assert not log.path.exists()


def test_a_torn_last_line_is_mended_and_another_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "train", "epoch": 1, "loss": 1.0}\n{"stage": "tr')
    with MetricLog(tmp_path, tensorboard=False) as log:
        assert [r["epoch"] for r in log.records()] == [1]
        log.write("train", 2, RECORD)
    assert [json.loads(line)["epoch"] for line in path.open()] == [1, 2]
    path.write_text("hello\n" + path.read_text())
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: not a record"):
        MetricLog(tmp_path, tensorboard=False)


def test_forgetting_a_stage_leaves_the_others(tmp_path):
    with MetricLog(tmp_path, tensorboard=False) as log:
        for stage in ("train", "finetune"):
            for epoch in (1, 2):
                log.write(stage, epoch, RECORD)
        log.forget("train")
        assert [r["stage"] for r in log.records()] == ["finetune", "finetune"]
        assert log.write("train", 1, RECORD)
    with MetricLog(tmp_path, tensorboard=False) as log:
        assert len(log.records("train")) == 1


# --- NNI -----------------------------------------------------------------------------------------


def test_nni_gets_its_four_numbers_once_and_old_epochs_first(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(compat, "report_intermediate", sent.append)
    with MetricLog(tmp_path, tensorboard=False, nni=False) as log:
        log.write("train", 1, {**RECORD, "val_accuracy": 0.5})
    assert sent == []
    with MetricLog(tmp_path, tensorboard=False, nni=True) as log:
        log.write("train", 1, RECORD)
        log.write("train", 2, {"val_accuracy": 0.875, "loss": 0.25, "lr": 0.1})
        log.write("train", 2, {"val_accuracy": 0.875, "loss": 0.25, "lr": 0.1})
        log.forget("train")
        log.write("train", 1, RECORD)
    assert sent == [
        {"default": 0.5, "loss": 0.5, "lr": 0.1, "sparsity": 0.25},
        {"default": 0.875, "loss": 0.25, "lr": 0.1, "sparsity": 0.0},
        {"default": 0.75, "loss": 0.5, "lr": 0.1, "sparsity": 0.25},
    ]


def test_outside_nni_nothing_is_asked_or_sent(monkeypatch):
    monkeypatch.delenv("NNI_PLATFORM", raising=False)
    assert not compat.running_under_nni()
    assert compat.next_parameters() == {}
    compat.report_intermediate({"default": 1.0})
    compat.report_final({"default": 1.0})
    monkeypatch.setenv("NNI_PLATFORM", "unittest")
    assert not compat.running_under_nni()


TRIAL = """
import sys
from nni_gconv import compat
from nni_gconv.training.logs.metric_log import MetricLog
assert compat.running_under_nni()
assert compat.next_parameters() == compat.next_parameters() == {"train.optimizer.lr": 0.3}
with MetricLog(sys.argv[1], tensorboard=False) as log:
    for epoch in (1, 2):
        log.write("train", epoch, {"loss": 1.0, "val_accuracy": epoch / 4, "lr": 0.3})
compat.report_final({"default": 0.5, "params": 100})
"""


@pytest.mark.slow
def test_through_nnis_own_channel(tmp_path):
    """NNI's files of a local trial, as its manager lays them out."""
    parameters = {"parameter_id": 0, "parameters": {"train.optimizer.lr": 0.3}}
    (tmp_path / "parameter.cfg").write_text(json.dumps(parameters))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "NNI_PLATFORM": "local",
        "NNI_EXP_ID": "exp",
        "NNI_TRIAL_JOB_ID": "job",
        "NNI_TRIAL_SEQ_ID": "0",
        "NNI_SYS_DIR": str(tmp_path),
        "NNI_OUTPUT_DIR": str(tmp_path / "out"),
    }
    command = [sys.executable, "-c", TRIAL, str(tmp_path / "log")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / ".nni" / "metrics").read_text()
    sent = [json.loads(part[part.index("{") :]) for part in text.splitlines()]
    assert [(m["type"], m["sequence"]) for m in sent] == [
        ("PERIODICAL", 0), ("PERIODICAL", 1), ("FINAL", 0),
    ]  # fmt: skip
    assert [json.loads(m["value"])["default"] for m in sent] == [0.25, 0.5, 0.5]
