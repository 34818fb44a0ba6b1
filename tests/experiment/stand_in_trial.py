"""A trial that does at once what a real one does in minutes; ``x`` says how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

with contextlib.suppress(ImportError):  # where another python runs it, NNI is as it is
    import light_nni  # noqa: F401
import nni


def reachable(port: int) -> dict[str, bool]:
    """Tell from which of this machine's addresses the manager answers."""
    import psutil

    found = {}
    for interface in psutil.net_if_addrs().values():
        for address in interface:
            if address.family == socket.AF_INET:
                with socket.socket() as probe:
                    probe.settimeout(2)
                    found[address.address] = probe.connect_ex((address.address, port)) == 0
    return found


def main() -> None:
    if os.environ.get("SLOW_FIRST") and os.environ["NNI_TRIAL_SEQ_ID"] == "0":
        time.sleep(1.5)
    x = nni.get_next_parameter()["x"]
    output = Path(os.environ["NNI_OUTPUT_DIR"])
    (output / "given.json").write_text(json.dumps({"x": x}))
    with contextlib.suppress(ImportError):  # as above
        from nni_gconv.compat import trials_at_a_time

        (output / "at_a_time.json").write_text(json.dumps(trials_at_a_time()))
    if x == "link":
        from nni_gconv.compat import link_tensorboard

        link_tensorboard(output)
        (output / "tensorboard" / "events.out.tfevents.0").write_text("event")
        x = 1
    if x == "sleep":
        (output / "sleeping").touch()
        time.sleep(600)
    if x == "flaky":  # fails, and goes well when it is started again
        x = 2 if (output / "failed").exists() else "fail"
        (output / "failed").touch()
    if str(x).startswith("wait"):
        (output / "waiting").touch()
        while not (Path.home() / "go").exists():
            time.sleep(0.1)
        x = 1
    if x == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if x == "fail":
        sys.exit("the stand-in could not go on")
    port = int(re.search(r":(\d+)/", os.environ["NNI_TRIAL_COMMAND_CHANNEL"]).group(1))
    (output / "reachable.json").write_text(json.dumps(reachable(port)))
    metrics = {
        "default": 0.9 - x / 10, "accuracy": 0.9 - x / 10, "accuracy_dense": 0.92,
        "params": 1000 * x, "params_ratio": x / 4, "macs": 5000 * x, "macs_ratio": 1 - x / 4,
        "latency_ms": 1.0, "latency_ratio": x / 4,
    }  # fmt: skip
    result = {
        "format": 1, "name": "stand-in", "method": "fpgm", "budget": {"macs": 1 - x / 4},
        "metrics": metrics, "test": {"accuracy": 0.8, "accuracy_dense": 0.9},
        "stages": {"train": {"seconds": 1.5}, "prune": {"seconds": 0.5}}, "seed": 0,
        "trial": os.environ["NNI_TRIAL_JOB_ID"], "x": x,
    }  # fmt: skip
    (output / "result.json").write_text(json.dumps(result))
    nni.report_intermediate_result({"default": 0.1})
    nni.report_final_result(metrics)


main()
