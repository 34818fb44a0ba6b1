"""The GPUs of a trial: taken before CUDA starts, and torchrun where it is more than one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from nni_gconv import compat
from nni_gconv.recipe.schema import Recipe
from nni_gconv.slots import gpu_slots, gpus_wanted


@contextlib.contextmanager
def trial_gpus(recipe: Recipe) -> Iterator[None]:
    """Hold the GPUs of a trial that NNI started; anywhere else do nothing.

    ``device: cuda:1`` names a GPU and ``cpu`` needs none: neither takes a slot.
    """
    count = _slots_of(recipe) if compat.running_under_nni() else 0
    with gpu_slots(count, required=recipe.device == "cuda"):
        yield


def torchrun_size(recipe: Recipe, asked: int | None = None) -> int:
    """Return how many processes torchrun has to start for this trial, 0 if none.

    Parameters
    ----------
    recipe : Recipe
        Its ``gpus`` counts under NNI.
    asked : int, optional
        A number of the command line, which counts everywhere.
    """
    if "RANK" in os.environ:
        return 0  # torchrun has started this very process
    under_nni = compat.running_under_nni()
    count = asked if asked is not None else _slots_of(recipe) if under_nni else 1
    return count if count > 1 else 0


def run_torchrun(recipe: Recipe, count: int, arguments: Sequence[str]) -> int | None:
    """Hold `count` GPUs and train with one process on each.

    Parameters
    ----------
    recipe : Recipe
        Says whether a GPU is a must (``device: cuda``).
    count : int
        GPUs and processes.
    arguments : sequence of str
        Of ``nni-gconv run``.

    Returns
    -------
    int or None
        Exit code of torchrun; None where there is no GPU and one process does (``device: auto``).

    Raises
    ------
    ConfigError
        The machine has fewer GPUs.
    """
    with gpu_slots(count, required=recipe.device == "cuda") as gpus:
        if not gpus:
            return None
        command = [sys.executable, "-m", "nni_gconv.compat.torchrun", "--standalone"]
        command += ["--nproc_per_node", str(count), "-m", "nni_gconv", "run", *arguments]
        with subprocess.Popen(command) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                process.terminate()
                raise


def _slots_of(recipe: Recipe) -> int:
    if recipe.device not in ("auto", "cuda"):
        return 0
    return gpus_wanted(recipe.gpus)
