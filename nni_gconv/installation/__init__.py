"""What of an installation will not work, and how to fix it: ``nni-gconv doctor``.

Begin with :func:`examine`. Needs little but Python to start (``python -m nni_gconv.installation``),
and loads what it looks at in processes of their own: a library that crashes is a finding, not the
end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from nni_gconv.installation.finding import Finding
from nni_gconv.installation.machine import MACHINE
from nni_gconv.installation.software import SOFTWARE
from nni_gconv.installation.wheel import write_wheel

__all__ = ["Finding", "blocks", "examine", "write_wheel"]


def examine() -> list[Finding]:
    """Look at the installation of this Python.

    Returns
    -------
    list of Finding
        In the order in which they are best fixed.

    Examples
    --------
    >>> found = examine()  # doctest: +SKIP
    >>> [one.remedy for one in found if one.state == "error"]  # doctest: +SKIP
    ["pip install 'setuptools>=77.0.3,<81'"]
    """
    with ThreadPoolExecutor() as pool:  # most of the time is spent in processes that import
        return [one for found in pool.map(_look, (*SOFTWARE, *MACHINE)) for one in found]


def _look(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # a check that breaks must not hide the others
        what = check.__name__.strip("_")
        return [Finding(what, "warning", f"could not be looked at: {error!r}")]


def blocks(found: list[Finding]) -> bool:
    """Tell whether something was found that must be fixed first."""
    return any(one.state == "error" for one in found)
