"""Two processes, started by torchrun or with what it tells them, train as one would."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from processes import launch_with_torchrun, run
from torch import nn
from training_nets import same_weights

from nni_gconv.errors import ConfigError
from nni_gconv.training.distributed import Distributed


def final(directory, rank=0):
    return torch.load(directory / f"final-{rank}.pt", weights_only=True)


def numbers(history):
    return [[v for k, v in record.items() if k != "seconds"] for record in history]


@pytest.mark.slow
@pytest.mark.parametrize(("distill", "by_torchrun"), [("no", True), ("yes", False)])
def test_two_processes_equal_one(tmp_path, distill, by_torchrun):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    alone = run("fit_process.py", one, "net=plain", "batch=16", f"distill={distill}")
    assert alone.code == 0, alone.said
    given = [two, "net=plain", "batch=8", f"distill={distill}"]
    if by_torchrun:
        done = launch_with_torchrun("fit_process.py", *given)
        assert done.returncode == 0, done.stderr
    else:  # loads torch and NNI once and not four times
        done = run("fit_process.py", *given, processes=2)
        assert done.code == 0, done.said
    alone, first, second = final(one), final(two, 0), final(two, 1)
    assert same_weights(first["weights"], second["weights"])
    for name, weight in alone["weights"].items():
        assert torch.allclose(weight, first["weights"][name], rtol=1e-4, atol=1e-6), name
    assert first["test"] == second["test"]
    assert first["test"]["count"] == 24  # each image once
    assert first["test"]["accuracy"] == alone["test"]["accuracy"]
    assert numbers(first["history"]) == numbers(second["history"])
    for a, b in zip(numbers(first["history"]), numbers(alone["history"]), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    lines = [json.loads(line) for line in (two / "metrics.jsonl").open()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]  # one process writes


@pytest.mark.slow
@pytest.mark.parametrize("distill", ["no", "yes", "maps"])
def test_two_processes_that_are_killed_resume_to_the_same_weights(tmp_path, distill):
    """With batch norm and dropout, whose state differs between the processes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    given = ["batch=8", "epochs=2", f"distill={distill}"]
    done = run("fit_process.py", whole, *given, processes=2)
    assert done.code == 0, done.said
    assert run("fit_process.py", cut, *given, "kill_at=6", processes=2).code == -signal.SIGKILL
    assert not (cut / "final-0.pt").exists()
    done = run("fit_process.py", cut, *given, "resume=yes", processes=2)
    assert done.code == 0, done.said
    for rank in (0, 1):
        assert same_weights(final(whole, rank)["weights"], final(cut, rank)["weights"])
    assert same_weights(final(cut, 0)["weights"], final(cut, 1)["weights"])


def test_alone_everything_is_the_identity(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    net = nn.Linear(2, 2)
    with Distributed.from_environment() as distributed:
        assert (distributed.is_main, distributed.active) == (True, False)
        assert distributed.wrap(net) is net
        assert distributed.broadcast_object("x") == "x"
        assert distributed.sum(torch.ones(2)).tolist() == [1, 1]
        distributed.sync_buffers(net)
        distributed.barrier()
        assert distributed.device("cpu") == torch.device("cpu")
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    assert Distributed().device() == torch.device("cpu")
    with pytest.raises(ConfigError, match="sees no GPU"):
        Distributed().device("cuda")
