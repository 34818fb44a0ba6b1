"""HiGHS's integer programs through scipy, without the lines it writes to standard output."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

__all__ = ["maximise"]

#: Nodes of the search tree (not seconds: the same problem always ends in the same way).
_NODES = 5_000
_PREFIX = b"Highs"


def maximise(
    values: NDArray[np.float64], constraints: Sequence[LinearConstraint], *, relaxed: bool = False
) -> OptimizeResult:
    """Maximise a sum of values over variables that are 0 or 1.

    Parameters
    ----------
    values : ndarray of float64, shape (N,)
        Of each variable.
    constraints : sequence of LinearConstraint
        On the variables.
    relaxed : bool, default False
        Allow everything between 0 and 1.

    Returns
    -------
    OptimizeResult
        scipy's, of the minimisation of the negative sum.

    Examples
    --------
    >>> one = LinearConstraint(np.ones((1, 2)), 1, 1)
    >>> maximise(np.array([1.0, 2.0]), [one]).x.tolist()
    [0.0, 1.0]
    """
    with _highs_silenced():
        return milp(
            -values,
            constraints=constraints,
            integrality=np.full(len(values), 0 if relaxed else 1),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0, "node_limit": _NODES},
        )


@contextmanager
def _highs_silenced() -> Iterator[None]:
    """Drop the lines of debugging that HiGHS prints, whatever it is told, beside our JSON.

    They go through the C library to file descriptor 1. What others write there meanwhile is
    written when the block ends.
    """
    try:
        saved = os.dup(1)
    except OSError:  # there is no standard output to keep clean
        yield
        return
    flush = ctypes.CDLL(None).fflush
    with tempfile.TemporaryFile() as written:
        sys.stdout.flush()
        flush(None)
        os.dup2(written.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            flush(None)
            os.dup2(saved, 1)
            os.close(saved)
            written.seek(0)
            for line in written:
                if not line.startswith(_PREFIX):
                    os.write(1, line)
