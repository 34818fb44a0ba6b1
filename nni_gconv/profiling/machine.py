"""What times were measured on, in words."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine_of(device: torch.device | str = "cpu", *, threads: int = 1) -> dict[str, Any]:
    """Describe what a time depends on beside the network.

    Parameters
    ----------
    device : torch.device or str, default "cpu"
        Where the network runs.
    threads : int, default 1
        CPU threads.

    Returns
    -------
    dict
        ``device`` (the processor's or the GPU's name), ``threads``, ``torch`` (version).

    Examples
    --------
    >>> sorted(machine_of(threads=2))
    ['device', 'threads', 'torch']
    """
    kind = torch.device(device)
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else processor()
    return {"device": name, "threads": threads, "torch": torch.__version__}


@functools.cache
def processor() -> str:
    """Return the name of the processor and how many of its cores this process may use."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {cores} cores"
