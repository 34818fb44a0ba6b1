"""``nni-gconv doctor EXPERIMENT.yml``: will it run, on this machine and on those it names."""

from __future__ import annotations

from pathlib import Path

import typer

from nni_gconv.cli.output import note, print_json


def doctor_experiment(file: Path, *, as_json: bool, fix: bool = False) -> int:
    """Check an experiment file and its machines, and print what was found.

    Parameters
    ----------
    file : Path
        The experiment file.
    as_json : bool
        Print a JSON list instead of lines.
    fix : bool, default False
        Install first what machines lack.

    Returns
    -------
    int
        Exit code: 0 where nothing hinders the experiment, else 2.
    """
    from nni_gconv.experiment import check_experiment, fix_machines
    from nni_gconv.remote import ERROR, WARNING, line_of

    for text in fix_machines(file) if fix else ():
        note(text)
    findings = check_experiment(file)
    rows = [
        {
            "level": found.level,
            "machine": found.machine or None,
            "file": str(file),
            "line": line_of(file, found.place) if found.place else None,
            "text": found.text,
        }
        for found in findings
    ]
    if as_json:
        print_json(rows)
    for row in rows if not as_json else ():
        place = f"{file.name}:{row['line']}" if row["line"] and row["level"] != "ok" else ""
        where = f"{place} {row['machine'] or 'here'}".strip()
        typer.echo(f"{row['level']:8} {where}: {row['text']}")
    errors = sum(found.level == ERROR for found in findings)
    warnings = sum(found.level == WARNING for found in findings)
    if errors:
        note(f"error: {errors} of {len(findings)} checks failed; the experiment would not run")
        return 2
    words = f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
    note(f"nothing hinders it{words}")
    note(f"start it by nni-gconv create {file}: nnictl create opens NNI's manager to the network")
    return 0
