"""One thing that was looked at, and looking at a library in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

_SECONDS = 180  # for an import on a machine that is busy


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what : str
        What was looked at.
    state : str
        ``ok``, ``note`` (works, but something is missing), ``warning`` (some things will not
        work) or ``error`` (blocks).
    text : str
        What was found.
    remedy : str
        How to fix it; "" where there is nothing to fix.
    """

    what: str
    state: str
    text: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    def line(self) -> str:
        """Return it as plain text, the remedy on a line of its own."""
        fix = f"\n         fix:  {self.remedy}" if self.remedy else ""
        return f"{self.state:8} {self.what}: {self.text}{fix}"


def version(name: str) -> str:
    """Return the installed version of a package, ``(not installed)`` where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def run(command: list[str]) -> subprocess.CompletedProcess[str] | str:
    """Run a program to its end; return why where it could not be started or did not end."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {_SECONDS} s"
    except OSError as error:
        return str(error)


def load(code: str) -> dict[str, Any] | str:
    """Run code in a Python of its own; return what it printed as JSON, or why it failed."""
    said = run([sys.executable, "-W", "ignore", "-c", code])
    if isinstance(said, str):
        return said
    if said.returncode != 0:
        return last(said.stderr) or f"exit code {said.returncode}"
    try:
        found = json.loads(said.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found = {}
    return found if isinstance(found, dict) else {}


def last(text: str) -> str:
    r"""Return the last line of a program's words, on which Python and the linker put the reason.

    Examples
    --------
    >>> last("Traceback:\n  ...\nValueError:  no   torch\n")
    'ValueError: no torch'
    """
    lines = [line for line in text.splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:300] if lines else ""
