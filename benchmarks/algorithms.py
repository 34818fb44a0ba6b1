"""Which of NNI's tuners and assessors run to the end here? Each one is run by NNI's real manager.

    python benchmarks/algorithms.py --write docs/tuners.md

A case is an experiment of twelve trials of two seconds, two at a time, that report as the trials of
nni-gconv do: numbers with ``default``, every epoch and at the end. What preflight would say
beforehand is left out, so that one sees what happens without it. The table replaces what stands
between the two marks in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import yaml

BEGIN, END = "<!-- algorithms: begin -->", "<!-- algorithms: end -->"
TRIALS = 12

TRIAL = """
import time
import nni

given = nni.get_next_parameter()
given = given.get("combine_params", given)
x, n = float(given["x"]), float(given["n"])
budget = int(given.get("TRIAL_BUDGET", 6))
best = 0.95 - 0.5 * (x - 0.3) ** 2 - 0.02 * n
for epoch in range(budget):
    time.sleep(0.3)
    reached = best * (1 - 0.6 ** (epoch + 1))
    nni.report_intermediate_result({"default": reached, "loss": 1 - reached, "lr": 0.1})
nni.report_final_result({"default": best, "accuracy": best, "macs_ratio": 1 / n})
"""
SPACE = {
    "x": {"_type": "uniform", "_value": [0, 1]},
    "n": {"_type": "choice", "_value": [1, 2, 4]},
}
GRID = {
    "x": {"_type": "choice", "_value": [0.1, 0.3, 0.5, 0.9]},
    "n": {"_type": "choice", "_value": [1, 2, 4]},
}
COSTS = {**GRID, "n": {**GRID["n"], "macs": [0.8, 0.4, 0.2]}}
BATCH = {
    "combine_params": {"_type": "choice", "_value": [{"x": i / 12, "n": 2} for i in range(12)]}
}
UP = {"optimize_mode": "maximize"}


def own(name: str, **args: object) -> dict:
    return {"className": f"nni_gconv.tuner.{name}", "codeDirectory": ".", "classArgs": args}


def nnis(name: str, **args: object) -> dict:
    return {"name": name, "classArgs": args} if args else {"name": name}


MEDIAN = {"name": "Medianstop", "classArgs": {**UP, "start_step": 2}}
CURVES = {"name": "Curvefitting", "classArgs": {"epoch_num": 6, "start_step": 3, "gap": 1}}

#: What the table calls it -> tuner, assessor, search space.
CASES: dict[str, tuple[dict, dict | None, dict]] = {
    "ours: `nni_gconv.tuner.ParetoTuner`": (own("ParetoTuner", warmup=4), None, COSTS),
    "Random": (nnis("Random"), None, SPACE),
    "GridSearch": (nnis("GridSearch"), None, GRID),
    "Batch": (nnis("Batch"), None, BATCH),
    "TPE": (nnis("TPE", **UP), None, SPACE),
    "Evolution": (nnis("Evolution", population_size=4, **UP), None, SPACE),
    "Anneal": (nnis("Anneal", **UP), None, SPACE),
    "PBT": (nnis("PBT", population_size=4, **UP), None, SPACE),
    "Hyperband": (nnis("Hyperband", R=6, eta=2, **UP), None, SPACE),
    "Hyperband, `nni_gconv.tuner.Hyperband`": (own("Hyperband", R=6, eta=2, **UP), None, SPACE),
    "BOHB": (nnis("BOHB", min_budget=1, max_budget=6, eta=2, **UP), None, SPACE),
    "BOHB, `nni_gconv.tuner.BOHB`": (
        own("BOHB", min_budget=1, max_budget=6, eta=2, **UP), None, SPACE,
    ),
    "GP": (nnis("GP", cold_start_num=4, **UP), None, SPACE),
    "Metis": (nnis("Metis", cold_start_num=4, **UP), None, SPACE),
    "SMAC": (nnis("SMAC", **UP), None, SPACE),
    "DNGO": (nnis("DNGO", **UP), None, SPACE),
    "Random + Medianstop": (nnis("Random"), MEDIAN, SPACE),
    "Random + Curvefitting": (nnis("Random"), CURVES, SPACE),
    "TPE + Medianstop": (nnis("TPE", **UP), MEDIAN, SPACE),
    "TPE, `nni_gconv.tuner.TPE` + Medianstop": (own("TPE", **UP), MEDIAN, SPACE),
    "Evolution + Medianstop": (nnis("Evolution", population_size=4, **UP), MEDIAN, SPACE),
    "Evolution, `nni_gconv.tuner.Evolution` + Medianstop": (
        own("Evolution", population_size=4, **UP), MEDIAN, SPACE,
    ),
    "ours: `ParetoTuner` + Medianstop": (own("ParetoTuner", warmup=4), MEDIAN, COSTS),
}  # fmt: skip


def run_case(name: str, folder: Path) -> dict:
    """Run one case in this process and tell how it ended."""
    from nni_gconv.errors import NniGconvError
    from nni_gconv.experiment.checks.preflight import preflight
    from nni_gconv.experiment.launch import start
    from nni_gconv.experiment.watch import watch

    tuner, assessor, space = CASES[name]
    (folder / "trial.py").write_text(TRIAL)
    settings = {
        "experimentName": name,
        "trialCommand": "python trial.py",
        "trialCodeDirectory": ".",
        "trialConcurrency": 2,
        "maxTrialNumber": TRIALS,
        "maxExperimentDuration": "5m",
        "searchSpace": space,
        "tuner": tuner,
        "trainingService": {"platform": "local"},
        **({"assessor": assessor} if assessor else {}),
    }
    file = folder / "experiment.yml"
    file.write_text(yaml.safe_dump(settings))
    module = sys.modules["nni_gconv.experiment.checks.preflight"]
    try:
        with mock.patch.object(module, "check_algorithms", return_value=[]):
            plan = preflight(file)
        experiment = start(plan)
        try:
            outcome = watch(experiment)
        finally:
            experiment.stop()
    except NniGconvError as error:
        return {"ok": False, "message": str(error), "trials": {}}
    states: dict[str, int] = {}
    for trial in outcome.trials:
        states[trial.status] = states.get(trial.status, 0) + 1
    log = outcome.folder / "log" / "dispatcher.log"
    lines = log.read_text().splitlines() if log.is_file() else []
    errors = [line for line in lines if "Error: " in line and not line.startswith("[")]
    return {
        "ok": outcome.ok,
        "message": outcome.message,
        "trials": states,
        "error": errors[-1] if errors else "",
    }


def one_process(name: str) -> dict:
    """Run one case in a process and a home of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        env = {**os.environ, "HOME": str(home), "NNI_CONFIG_DIR": str(home / "config")}
        command = [sys.executable, "-W", "ignore", __file__, "--case", name, "--folder", scratch]
        try:
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=500, check=False
            )
            found = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            found = {"ok": False, "message": "did not end in 500 s", "trials": {}}
        except (ValueError, IndexError):
            words = (done.stderr.splitlines() or ["nothing"])[-1]
            found = {"ok": False, "message": words, "trials": {}}
    print(json.dumps({name: found}), file=sys.stderr, flush=True)
    return found


def table(results: dict[str, dict]) -> str:
    """Write the results as Markdown."""
    lines = ["| tuner + assessor | runs to the end | trials | what it said |", "|---|---|---|---|"]
    for name, found in results.items():
        words = {"SUCCEEDED": "done", "EARLY_STOPPED": "stopped early"}
        states = [f"{n} {words.get(s, s.lower())}" for s, n in sorted(found["trials"].items())]
        said = "" if found["ok"] else found.get("error") or found["message"]
        said = said.split(" (File ")[0].replace("|", "\\|")
        said = said if len(said) <= 110 else said[:107] + "..."
        cells = [name, "yes" if found["ok"] else "**no**", ", ".join(states) or "none", said]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("nni", "numpy", "scipy", "hyperopt", "ConfigSpace", "statsmodels"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"Python {platform.python_version()}, " + ", ".join(found)


def write(file: Path, text: str) -> None:
    page = file.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="page to put the table in")
    parser.add_argument("--at-a-time", type=int, default=2)
    parser.add_argument("--only", help="run the cases whose name has this in it")
    parser.add_argument("--results", type=Path, help="JSON to add results to, and to start from")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args.case, args.folder)))
        return
    names = [name for name in CASES if args.only is None or args.only in name]
    with ThreadPoolExecutor(args.at_a_time) as pool:
        found = dict(zip(names, pool.map(one_process, names), strict=True))
    kept = {}
    if args.results:
        kept = json.loads(args.results.read_text()) if args.results.is_file() else {}
        args.results.write_text(json.dumps({**kept, **found}, indent=1))
    results = {name: {**kept, **found}[name] for name in CASES if name in {**kept, **found}}
    text = f"{table(results)}\n\n({TRIALS} trials each; {versions()}.)"
    print(text)
    if args.write:
        write(args.write, text)


if __name__ == "__main__":
    main()
