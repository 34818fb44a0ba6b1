"""Everything about an experiment file that can be looked at beforehand, machine by machine."""

from __future__ import annotations

import platform
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nni_gconv._version import __version__
from nni_gconv.errors import ConfigError
from nni_gconv.experiment.checks.gpus import gpu_wish
from nni_gconv.experiment.checks.plan import ExperimentPlan
from nni_gconv.experiment.checks.preflight import preflight
from nni_gconv.experiment.checks.trial_recipe import trial_recipe
from nni_gconv.remote import (
    ERROR,
    MAX_BYTES,
    MAX_FILES,
    OK,
    PACKAGES,
    WARNING,
    Finding,
    Machine,
    MachineFacts,
    RemoteError,
    Wanted,
    check_machine,
    code_size,
    connect,
    line_of,
)
from nni_gconv.slots import machine_slots

_MUCH_CODE = 20 * 1024**2


def check_experiment(file: str | Path) -> list[Finding]:
    """Check an experiment file, what it names, and every machine in it; starts nothing.

    Parameters
    ----------
    file : str or Path
        An NNI 3.0 experiment YAML.

    Returns
    -------
    list of Finding
        What is well is in it too.

    Examples
    --------
    >>> from nni_gconv.experiment import experiment_file
    >>> found = check_experiment(experiment_file("quickstart"))
    >>> {finding.level for finding in found} <= {"ok", "warning"}
    True
    """
    try:
        plan = preflight(file)
    except ConfigError as error:
        return [Finding(ERROR, str(error).removeprefix(f"{file}: "), _place(str(error)))]
    findings = [Finding(OK, "the file, and what it names on this machine")]
    findings += [Finding(WARNING, note, _place(note)) for note in plan.notes]
    return findings + _check_code(plan) + check_machines(plan)


def check_machines(plan: ExperimentPlan) -> list[Finding]:
    """Check the machines of an experiment, all at once.

    Parameters
    ----------
    plan : ExperimentPlan
        From :func:`nni_gconv.experiment.checks.preflight`.

    Returns
    -------
    list of Finding
        Machine by machine, then the GPUs of all.
    """
    machines = plan.machines
    if not machines:
        return []
    wanted = _wanted(plan)
    with ThreadPoolExecutor(len(machines)) as pool:
        results = list(pool.map(lambda machine: _check(machine, wanted), machines))
    findings = [finding for _, found in results for finding in found]
    known = {machine: facts for machine, (facts, _) in zip(machines, results, strict=True) if facts}
    return findings + _check_gpus(plan, known)


def made_ready(plan: ExperimentPlan) -> ExperimentPlan:
    """Check the machines of a plan before it is started.

    Parameters
    ----------
    plan : ExperimentPlan
        From :func:`nni_gconv.experiment.checks.preflight`.

    Returns
    -------
    ExperimentPlan
        The same, with a note for each warning.

    Raises
    ------
    RemoteError
        The first error: file, line, machine and what is wrong.
    """
    findings = check_machines(plan)
    for found in findings:
        if found.level == ERROR:
            line = line_of(plan.file, found.place)
            where = f"{plan.file}:{line}" if line else str(plan.file)
            others = sum(one.level == ERROR for one in findings) - 1
            more = f" (and {others} more: nni-gconv doctor {plan.file})" if others else ""
            raise RemoteError(f"{where}: {found.machine or 'here'}: {found.text}{more}")
    notes = [f"{one.machine or 'here'}: {one.text}" for one in findings if one.level == WARNING]
    return replace(plan, notes=(*plan.notes, *notes))


def _check(machine: Machine, wanted: Wanted) -> tuple[MachineFacts | None, list[Finding]]:
    try:
        with connect(machine) as connection:
            facts, found = check_machine(connection, wanted)
    except RemoteError as error:
        text = str(error).removeprefix(f"{machine.label}: ")
        return None, [Finding(ERROR, text, (*machine.place, error.key), machine.label)]
    login = Finding(OK, "login, and its host key is the known one", machine.place, machine.label)
    return facts, [login, *found]


def versions_here() -> dict[str, str]:
    """Return the versions of the packages that are compared."""
    versions = {"nni-gconv": __version__}
    for name in PACKAGES:
        if name not in versions:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue
    return versions


def _wanted(plan: ExperimentPlan) -> Wanted:
    return Wanted(
        versions=versions_here(),
        python=platform.python_version(),
        program=_program(_remote(plan).trial_command),
        debug=plan.config.log_level in ("debug", "trace"),
        tunnel=plan.loopback,
    )


def _remote(plan: ExperimentPlan) -> Any:
    return next(one for one in plan.services if one.platform == "remote")


def _program(command: str) -> str:
    """Return the program of a trial command, "" where only a shell can tell."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    return words[0] if words and re.fullmatch(r"[\w.+-]+", words[0]) else ""


def _check_code(plan: ExperimentPlan) -> list[Finding]:
    if not plan.machines:
        return []
    folder = Path(_remote(plan).trial_code_directory)
    size = code_size(folder)
    shown = f"{size.files} files, {size.size / 1024**2:.1f} MiB of code go to each machine"
    largest = ", ".join(f"{name} ({bytes_ / 1024**2:.1f} MiB)" for name, bytes_ in size.largest)
    hint = f"; the largest: {largest}; name what trials do not need in {folder}/.nniignore"
    place = ("trialCodeDirectory",)
    if size.files > MAX_FILES or size.size > MAX_BYTES:
        return [Finding(ERROR, f"{shown}: NNI refuses over 2000 files or 300 MiB{hint}", place)]
    if size.size > _MUCH_CODE:
        return [Finding(WARNING, shown + hint, place)]
    return [Finding(OK, shown, place)]


def _check_gpus(plan: ExperimentPlan, known: dict[Machine, MachineFacts]) -> list[Finding]:
    """Compare trialConcurrency with the GPUs of all machines that take part."""
    service = _remote(plan)
    wish = gpu_wish(trial_recipe(service.trial_command, Path(service.trial_code_directory)))
    if wish.count == 0:
        return []
    findings = []
    gpus = {machine.label: (len(facts.gpus), facts.no_gpu) for machine, facts in known.items()}
    places = {machine.label: machine.place for machine in known}
    if any(one.platform == "local" for one in plan.services):
        slots = machine_slots()
        gpus["this machine"] = (len(slots), slots.reason)
    for label, (count, reason) in gpus.items():
        place = (*places.get(label, ()), "host") if label in places else ()
        machine = label if label in places else ""
        if count >= wish.count:
            findings.append(Finding(OK, f"{count} GPUs for trials", place, machine))
        elif count == 0:
            level = ERROR if wish.required else WARNING
            text = f"no GPU for trials ({reason or 'none is seen'})"
            text += "" if wish.required else ": they run on the CPU"
            findings.append(Finding(level, text, place, machine))
        else:
            text = f"{count} GPUs, but each trial takes {wish.count}"
            findings.append(Finding(ERROR, text, place, machine))
    room = {label: count // wish.count for label, (count, _) in gpus.items()}
    if len(known) == len(plan.machines) and all(room.values()):
        findings += _check_room(plan, room)
    return findings


def _check_room(plan: ExperimentPlan, room: dict[str, int]) -> list[Finding]:
    # NNI deals trials out in turn, whatever each machine has: the smallest one sets the pace.
    asked, even = plan.config.trial_concurrency, min(room.values()) * len(room)
    shown = ", ".join(f"{label}: {count}" for label, count in room.items())
    if asked > even:
        return [
            Finding(
                WARNING,
                f"trialConcurrency: {asked}, but trials go to the machines in turn, and {even} "
                f"have a GPU each way (room for {shown}): others wait for a free one",
                ("trialConcurrency",),
            )
        ]
    return [Finding(OK, f"trialConcurrency: {asked}, room for {shown}", ("trialConcurrency",))]


def _place(text: str) -> tuple[str | int, ...]:
    """Return the key that a message begins with, where it begins with one.

    Examples
    --------
    >>> _place("a.yml: trainingService.machineList[0].user is not set")
    ('trainingService', 'machineList', 0, 'user')
    """
    match = re.match(r"(?:.*\.ya?ml: )?([A-Za-z]+(?:\[\d+\]|\.[A-Za-z]+)*)", text)
    steps = re.findall(r"[A-Za-z]+|\d+", match[1]) if match else []
    return tuple(int(step) if step.isdigit() else step for step in steps)
