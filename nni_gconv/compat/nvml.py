"""Counting a machine's GPUs by the driver, without torch and without touching a GPU.

``torch.cuda.is_available()`` fixes which GPUs a process sees; a trial has to choose before that.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class DriverGpus:
    """What the driver knows.

    Attributes
    ----------
    uuids : tuple of str
        ``GPU-...`` of each GPU, in the order of the PCI bus.
    reason : str
        Why there is none; empty where there are some.
    """

    uuids: tuple[str, ...]
    reason: str = ""


def driver_gpus() -> DriverGpus:
    """Ask NVIDIA's driver for the GPUs of this machine.

    Examples
    --------
    >>> found = driver_gpus()
    >>> bool(found.uuids) != bool(found.reason)
    True
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the old package of the same name
            import pynvml
    except ImportError:
        return DriverGpus((), "nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return DriverGpus((), f"no NVIDIA driver ({error})")
    try:
        uuids = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            found = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))
            uuids.append(found.decode() if isinstance(found, bytes) else str(found))
    except pynvml.NVMLError as error:
        return DriverGpus((), f"the NVIDIA driver does not answer ({error})")
    finally:
        pynvml.nvmlShutdown()
    return DriverGpus(tuple(uuids), "" if uuids else "the NVIDIA driver sees none")
