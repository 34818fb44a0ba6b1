"""What one NNI manager bears: many short trials through the real manager, measured.

    python benchmarks/manager.py --out docs/scaling.md            # 100 trials, minutes
    python benchmarks/manager.py --trials 1000 --concurrency 8

Each trial asks for its parameters, works (sleeps) for --seconds, reports ten intermediate results
and a final one. Started by our launcher and by plain ``nnictl create``. Time lost is what a slot
spends beside that work: starting Python and ``import nni``, asking, and standing empty until the
manager has seen the end of a trial and started the next. Memory is resident (RSS).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from partition import machine

from nni_gconv.compat import write_launch_files
from nni_gconv.experiment import ManagerClient, ManagerError, run_experiment
from nni_gconv.experiment.checks.preflight import free_port

TRIAL = """
import json, os, time
import psutil
begun = psutil.Process().create_time()
import nni
nni.get_next_parameter()
asked, cpu = time.time(), time.process_time()
time.sleep({seconds})
for step in range(10):
    metrics = {{"default": step / 10, "loss": 1.0, "lr": 0.1, "sparsity": 0.5}}
    nni.report_intermediate_result(metrics)
nni.report_final_result({{"default": 0.9, "params": 1e6, "macs": 1e9}})
with open(os.environ["NNI_OUTPUT_DIR"] + "/times.json", "w") as file:
    json.dump([begun, asked, time.time(), cpu], file)
"""
NNICTL = "from nni.tools.nnictl.nnictl import parse_args; parse_args()"
MIB = 1024 * 1024


@dataclass
class Watch:
    """Resident memory of the manager and the tuner, once a second."""

    home: Path
    manager: list[int] = field(default_factory=list)
    tuner: list[int] = field(default_factory=list)
    cpu: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(1.0):
            with contextlib.suppress(OSError, ValueError, psutil.Error, KeyError, StopIteration):
                known = json.loads((self.home / "nni-experiments/.experiment").read_text())
                process = psutil.Process(next(iter(known.values()))["pid"])
                self.manager.append(process.memory_info().rss)
                times = process.cpu_times()
                self.cpu = times.user + times.system
                for child in process.children(recursive=True):  # below a shell
                    if child.environ().get("SDK_PROCESS") == "dispatcher":
                        self.tuner.append(child.memory_info().rss)


def write_experiment(folder: Path, args: argparse.Namespace) -> Path:
    (folder / "trial.py").write_text(TRIAL.format(seconds=args.seconds))
    experiment = {
        "trialCommand": "python trial.py",
        "trialCodeDirectory": ".",
        "trialConcurrency": args.concurrency,
        "maxTrialNumber": args.trials,
        "searchSpace": {"x": {"_type": "uniform", "_value": [0, 1]}},
        "tuner": {"name": args.tuner, "classArgs": {"optimize_mode": "maximize"}},
        "trainingService": {"platform": "local"},
    }
    if args.tuner == "Random":
        del experiment["tuner"]["classArgs"]
    file = folder / "experiment.yml"
    file.write_text(yaml.safe_dump(experiment))
    return file


def by_nnictl(file: Path, folder: Path) -> None:
    write_launch_files(folder / "shims")
    # All that is added to plain nnictl: loopback only, and time for the tuner to connect.
    scripts = [folder / "shims" / name for name in ("bind.js", "patience.js")]
    os.environ["NODE_OPTIONS"] = " ".join(f"--require {script}" for script in scripts)
    port = free_port()
    call = [sys.executable, "-W", "ignore", "-c", NNICTL]
    try:
        for _ in range(10):  # nnictl waits three seconds for its manager: too short when it is busy
            done = subprocess.run(
                [*call, "create", "--config", str(file), "--port", str(port)],
                check=False, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode == 0:
                break
        else:
            raise SystemExit(done.stderr)
    finally:
        del os.environ["NODE_OPTIONS"]
    client = ManagerClient(port)
    while True:
        with contextlib.suppress(ManagerError):
            if client.status()[0] in ("DONE", "ERROR"):
                break
        time.sleep(1)
    subprocess.run([*call, "stop", "--port", str(port)], check=True, stdout=subprocess.DEVNULL)


def measure(way: str, args: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="manager") as text:
        folder = Path(text)
        os.environ["HOME"] = text
        file = write_experiment(folder, args)
        watch = Watch(folder)
        thread = threading.Thread(target=watch.run)
        thread.start()
        try:
            if way == "nnictl create":
                by_nnictl(file, folder)
            else:
                outcome = run_experiment(file)
                if not outcome.ok:
                    raise SystemExit(outcome.message)
        finally:
            watch.over.set()
            thread.join()
        found = folder.glob("nni-experiments/[!_]*/environments/*/trials/*/times.json")
        times = sorted(json.loads(one.read_text()) for one in found)
        (database,) = folder.glob("nni-experiments/[!_]*/db/nni.sqlite")
        size = database.stat().st_size
    if len(times) != args.trials:
        raise SystemExit(f"{way}: {len(times)} of {args.trials} trials left their times")
    wall = times[-1][2] - times[0][0]
    lost = wall * args.concurrency / args.trials - args.seconds
    start = statistics.median(asked - begun for begun, asked, _, _ in times)
    cpu = statistics.median(cpu for *_, cpu in times)
    return [
        way, str(args.trials), str(args.concurrency), f"{wall:.0f}", f"{lost:.2f}",
        f"{start:.2f}", f"{cpu:.2f}", f"{watch.manager[0] / MIB:.0f}",
        f"{max(watch.manager) / MIB:.0f}", f"{1000 * watch.cpu / args.trials:.0f}",
        f"{max(watch.tuner) / MIB:.0f}", f"{size / 1024 / args.trials:.1f}",
    ]  # fmt: skip


HEADER = [
    "started by", "trials", "at a time", "all, s", "lost a trial, s", "of it start of Python, s",
    "its CPU, s", "manager at first, MiB", "manager at most, MiB", "manager's CPU a trial, ms",
    "tuner at most, MiB", "database a trial, KiB",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0, help="work of a trial")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[2])
    parser.add_argument("--tuner", default="TPE", help="Random, TPE, Evolution, ...")
    parser.add_argument("--out", type=Path, help="page whose table <!-- manager --> is replaced")
    args = parser.parse_args()
    rows = []
    for concurrency in args.concurrency:
        for way in ("nni-gconv create", "nnictl create"):
            given = argparse.Namespace(**{**vars(args), "concurrency": concurrency})
            rows.append(measure(way, given))
            print(dict(zip(HEADER, rows[-1], strict=True)), file=sys.stderr, flush=True)
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(HEADER) - 1))
    text = "\n".join(["", *lines, "", f"({machine()}; {args.seconds:g} s of work a trial.)", ""])
    print(text)
    if args.out:
        page = args.out.read_text(encoding="utf-8")
        before, _, rest = page.partition("<!-- manager -->")
        _, _, after = rest.partition("<!-- end -->")
        args.out.write_text(
            f"{before}<!-- manager -->\n{text}\n<!-- end -->{after}", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
