"""GPU slots: each trial takes a free GPU of its machine and sees no other.

NNI's own scheduler may start processes without end, so ``trialGpuNumber`` stays out of experiment
files. Here a GPU is a lock file, one for each GPU, machine and user: trials of one experiment and
of several wait for each other, and a lock goes with the process that holds it, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from nni_gconv.compat import driver_gpus
from nni_gconv.errors import ConfigError

GPUS_VARIABLE = "NNI_GCONV_GPUS"
"""GPUs a trial takes, instead of the recipe's ``gpus``; 0 leaves all GPUs alone."""

_FOLDER_VARIABLE = "NNI_GCONV_SLOT_FOLDER"
TAKEN_VARIABLE = "NNI_GCONV_SLOTS_TAKEN"  # set for what a holder starts: it takes none itself
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Slots:
    """The GPUs of this machine that trials may take.

    Attributes
    ----------
    names : tuple of str
        As ``CUDA_VISIBLE_DEVICES`` wants them: numbers, or UUIDs where the user gave UUIDs.
    locks : tuple of str
        Names of the lock files, the same for one GPU however it is written.
    reason : str
        Why there is none; empty where there are some.
    """

    names: tuple[str, ...]
    locks: tuple[str, ...]
    reason: str = ""

    def __len__(self) -> int:
        return len(self.names)


def machine_slots() -> Slots:
    """Return the GPUs that this process may take: the driver's, less those the user hides.

    A ``CUDA_VISIBLE_DEVICES`` of the user counts as CUDA counts it: what follows an entry that
    does not exist is not seen, and an empty one hides all.

    Examples
    --------
    >>> slots = machine_slots()
    >>> len(slots) > 0 or bool(slots.reason)
    True
    """
    driver = driver_gpus()
    given = os.environ.get(_VISIBLE)
    if given is None:
        names = [str(index) for index in range(len(driver.uuids))]
        return Slots(tuple(names), tuple(f"gpu-{name}" for name in names), driver.reason)
    found: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in given.split(","))):
        lock = _lock_name(entry, driver.uuids)
        if lock is None or lock in found.values():
            break
        found[entry] = lock
    reason = driver.reason or f"{_VISIBLE}={given!r} hides them"
    return Slots(tuple(found), tuple(found.values()), "" if found else reason)


def _lock_name(entry: str, uuids: tuple[str, ...]) -> str | None:
    if entry.isdigit():
        return f"gpu-{int(entry)}" if int(entry) < len(uuids) else None
    if entry.startswith("MIG-"):  # a part of a GPU is a slot of its own
        return entry.replace("/", "-") if uuids else None
    # CUDA takes a UUID's beginning, if it fits one GPU only.
    fits = [index for index, uuid in enumerate(uuids) if uuid.startswith(entry)]
    return f"gpu-{fits[0]}" if len(fits) == 1 else None


def gpus_wanted(recipe_gpus: int = 1) -> int:
    """Return how many GPUs a trial takes: :data:`GPUS_VARIABLE`, else what the recipe says.

    Raises
    ------
    ConfigError
        The variable is no whole number of 0 or more.
    """
    given = os.environ.get(GPUS_VARIABLE)
    if not given:
        return recipe_gpus
    if not given.isdigit():
        raise ConfigError(f"{GPUS_VARIABLE}={given!r}: expected a whole number, 0 or more")
    return int(given)


@contextlib.contextmanager
def gpu_slots(
    count: int = 1,
    *,
    required: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, ...]]:
    """Hold `count` free GPUs for a while; only they are visible to this process and its children.

    Has to be entered before anything asks CUDA which GPUs there are. Waits while all are taken;
    processes of other users and those that do not come through here are not seen.

    Parameters
    ----------
    count : int, default 1
        GPUs to take.
    required : bool, default False
        Whether a machine without a GPU is an error; else it is said, and nothing is taken.
    tell : callable, optional
        Gets lines for the user; default: they go to standard error.

    Yields
    ------
    tuple of str
        The GPUs as they stand in ``CUDA_VISIBLE_DEVICES`` now; empty without a GPU, or where a
        parent process holds them already.

    Raises
    ------
    ConfigError
        There are fewer GPUs than `count`, though some; or none, and `required`.

    Examples
    --------
    >>> with gpu_slots(tell=print) as gpus:  # doctest: +SKIP
    ...     train()
    GPU 1 of 0, 1, 2, 3
    """
    tell = tell or (lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    if count == 0 or os.environ.get(TAKEN_VARIABLE):
        yield ()
        return
    slots = machine_slots()
    if not slots.names:
        if required:
            raise ConfigError(f"device: cuda was asked for, but {_host()} has no GPU for it: "
                              f"{slots.reason}")  # fmt: skip
        tell(f"no GPU on {_host()}: {slots.reason}; running on the CPU")
        yield ()
        return
    if count > len(slots):
        raise ConfigError(
            f"gpus: {count} asked for, but {_host()} has {len(slots)} ({', '.join(slots.names)})"
        )
    locks = [FileLock(_slot_folder() / f"{name}.lock") for name in slots.locks]
    held = _wait_for(locks, count, lambda: tell(
        f"waiting for {count} free of {len(slots)} GPUs ({', '.join(slots.names)})"
    ))  # fmt: skip
    names = tuple(slots.names[index] for index in held)
    changes = {_VISIBLE: ",".join(names), TAKEN_VARIABLE: str(os.getpid())}
    # Numbers mean the driver's order, not CUDA's own "fastest first".
    changes |= {"CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        tell(f"GPU {', '.join(names)} of {', '.join(slots.names)} on {_host()}")
        yield names
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        for index in held:
            locks[index].release()


def _wait_for(locks: list[FileLock], count: int, say_wait: Callable[[], None]) -> list[int]:
    told = False
    while True:
        held: list[int] = []
        for index, lock in enumerate(locks):
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                held.append(index)
            if len(held) == count:
                return held
        # All or nothing: two that each hold a part would wait for ever.
        for index in held:
            locks[index].release()
        if not told:
            say_wait()
            told = True
        time.sleep(_POLL_SECONDS)


def _slot_folder() -> Path:
    """Return the folder of the locks: on this machine's own disk, as a home may be shared."""
    given = os.environ.get(_FOLDER_VARIABLE)
    if given:
        folder = Path(given)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    # Not the temporary folder of a batch job: its trials would not meet those of others.
    root = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    user = getattr(os, "getuid", lambda: 0)()
    folder = root / f"nni-gconv-gpus-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or (hasattr(os, "getuid") and state.st_uid != user):
        raise ConfigError(
            f"{folder} belongs to somebody else, so GPUs cannot be locked there; "
            f"set {_FOLDER_VARIABLE} to a folder of yours on this machine's own disk"
        )
    return folder


def _host() -> str:
    return socket.gethostname()
