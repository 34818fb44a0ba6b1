"""Bringing home what trials wrote on another machine.

A file appears whole under its name or not at all; what an earlier call has brought is left alone,
and a transfer that was cut off goes on where it stopped. ``result.json`` of a trial comes last, so
that a folder which has it has everything.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from fnmatch import fnmatch
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from nni_gconv.compat import link_tensorboard
from nni_gconv.files import write_text
from nni_gconv.remote.ssh import Connection, RemoteError

if TYPE_CHECKING:
    import paramiko

LARGE = (
    "dense.safetensors", "maps.safetensors", "masked.safetensors", "speedup.safetensors",
    "checkpoint*", "*.ckpt", "*.pt", "*.pth",
)  # fmt: skip
"""Files that a trial needs to go on, and a report does not."""

#: How NNI names the environment of a machine that is logged in to; that of this one ends in -env.
_WORKER = re.compile(r"[A-Za-z0-9_]+-worker[0-9]+")
#: File in an environment's folder that says which machine it belongs to.
_OWNER = ".machine"
_LAST = "result.json"
_CHUNK = 1 << 18
_SILENCE_SECONDS = 60.0


@dataclass
class FetchReport:
    """What a transfer did.

    Attributes
    ----------
    files, size : int
        Files brought now, and their bytes.
    trials : set of str
        Trials that are here now, with those brought before.
    skipped : list of str
        Large files that were left there.
    problems : list of str
        What could not be brought, with the reason.
    """

    files: int = 0
    size: int = 0
    trials: set[str] = field(default_factory=set)
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: FetchReport) -> None:
        """Take another machine's report into this one."""
        self.files += other.files
        self.size += other.size
        self.trials |= other.trials
        self.skipped += other.skipped
        self.problems += other.problems


def fetch_machine(
    connection: Connection, experiment_id: str, folder: Path, *, everything: bool = False
) -> FetchReport:
    """Bring home what the trials of an experiment wrote on one machine.

    Parameters
    ----------
    connection : Connection
        To that machine.
    experiment_id : str
        NNI's id.
    folder : Path
        The experiment's folder here; a trial's files get the place that those of a local trial
        have, ``environments/<worker>/trials/<id>``.
    everything : bool, default False
        With the files in :data:`LARGE`.

    Returns
    -------
    FetchReport

    Raises
    ------
    RemoteError
        The connection is lost; what has come is whole, and the next call goes on.
    """
    import paramiko

    home = connection.run('printf "%s" "$HOME"').out
    root = PurePosixPath(home, "nni-experiments", experiment_id, "environments")
    report = FetchReport()
    try:
        with contextlib.closing(connection.client.open_sftp()) as sftp:
            sftp.get_channel().settimeout(_SILENCE_SECONDS)  # type: ignore[union-attr]
            for environment in _folders(sftp, root):
                owner = connection.machine.label
                foreign = _foreign(folder / "environments" / environment, owner)
                if foreign:
                    report.problems.append(f"{owner}: {foreign}; left there")
                    continue
                for trial in _folders(sftp, root / environment / "trials"):
                    there = root / environment / "trials" / trial
                    here = folder / "environments" / environment / "trials" / trial
                    if _elsewhere(here, owner):
                        report.problems.append(f"{owner}: trial {trial} ran elsewhere; left there")
                        continue
                    _fetch_tree(sftp, there, here, report, everything)
                    report.trials.add(trial)
                    if (here / "tensorboard").is_dir():
                        link_tensorboard(here)
    except (paramiko.SSHException, EOFError, TimeoutError, ConnectionError) as error:
        raise RemoteError(
            f"{connection.machine.label}: lost while bringing files: {error or 'no answer'}"
        ) from None
    return report


def _foreign(environment: Path, owner: str) -> str:
    """Say why a machine must not write to an environment's folder here; "" if it may.

    The names come from that machine, which could be anybody's: neither what was run here nor what
    another machine left is its to change.
    """
    if not _WORKER.fullmatch(environment.name):
        return f"environment {environment.name!r} is none of a machine elsewhere"
    if environment.is_symlink() or (environment / "trials").is_symlink():
        return f"{environment} is a link"
    known = _owner_of(environment)
    if known is not None and known != owner:
        return f"environment {environment.name!r} is of {known}"
    environment.mkdir(parents=True, exist_ok=True)
    write_text(environment / _OWNER, owner)
    return ""


def _owner_of(environment: Path) -> str | None:
    mark = environment / _OWNER
    return mark.read_text(encoding="utf-8") if mark.is_file() else None


def _elsewhere(trial: Path, owner: str) -> bool:
    """Tell whether a trial of this name ran here or on another machine."""
    environments = trial.parents[2]
    found = environments.glob(f"*/trials/{escape(trial.name)}")
    return any(p != trial and _owner_of(p.parents[1]) != owner for p in found)


def _folders(sftp: paramiko.SFTPClient, path: PurePosixPath) -> list[str]:
    return sorted(name for name, mode in _list(sftp, path) if stat.S_ISDIR(mode))


def _list(sftp: paramiko.SFTPClient, path: PurePosixPath) -> list[tuple[str, int]]:
    """List a folder; a name that would lead out of it is not one of ours."""
    try:
        entries = sftp.listdir_attr(str(path))
    except FileNotFoundError:
        return []
    return [
        (entry.filename, entry.st_mode or 0)
        for entry in entries
        if entry.filename not in ("", ".", "..") and "/" not in entry.filename
    ]


def _fetch_tree(
    sftp: paramiko.SFTPClient, there: PurePosixPath, here: Path, report: FetchReport, all_: bool
) -> None:
    entries = sorted(_list(sftp, there), key=lambda entry: (entry[0] == _LAST, entry[0]))
    for name, mode in entries:
        if name.startswith("."):
            continue  # locks, and files that are being written
        if stat.S_ISDIR(mode):
            _fetch_tree(sftp, there / name, here / name, report, all_)
        elif stat.S_ISREG(mode):  # a link could lead anywhere
            if not all_ and any(fnmatch(name, pattern) for pattern in LARGE):
                report.skipped.append(str(here / name))
                continue
            try:
                _fetch_file(sftp, str(there / name), here / name, report)
            except (FileNotFoundError, PermissionError) as error:
                report.problems.append(f"{there / name}: {error.strerror or error}")


def _fetch_file(sftp: paramiko.SFTPClient, there: str, here: Path, report: FetchReport) -> None:
    state = sftp.stat(there)
    size, changed = int(state.st_size or 0), int(state.st_mtime or 0)
    with contextlib.suppress(OSError):
        known = here.stat()
        if known.st_size == size and int(known.st_mtime) == changed:
            return
    # The name says of which state it is a part: one of another state is begun anew.
    part = here.with_name(f".{here.name}.{changed}-{size}.part")
    here.parent.mkdir(parents=True, exist_ok=True)
    for stale in here.parent.glob(f".{escape(here.name)}.*.part"):
        if stale != part:
            stale.unlink()
    with sftp.open(there, "rb") as source, part.open("ab") as target:
        done = target.tell()
        source.seek(done)
        if size > done:
            source.prefetch(size)
        while done < size:
            data = source.read(min(_CHUNK, size - done))
            if not data:
                raise FileNotFoundError(0, "it became shorter while it was read")
            target.write(data)
            done += len(data)
    os.utime(part, (changed, changed))
    part.replace(here)
    report.files += 1
    report.size += size
