"""Several processes that train one model, as ``torchrun`` starts them.

``torchrun --nproc_per_node 2 -m nni_gconv run recipe.yml`` sets ``RANK``, ``WORLD_SIZE`` and
``LOCAL_RANK``. Without them everything here is a single process, and every method does nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nni_gconv import compat
from nni_gconv.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Distributed:
    """One process among those that train together; by default the only one.

    Attributes
    ----------
    rank, world_size : int
        Number of this process and count of all of them.
    local_rank : int
        Number of this process on its machine, which is the number of its GPU.
    owns_group : bool
        Whether leaving the context ends torch's process group.

    Examples
    --------
    >>> with Distributed.from_environment() as distributed:
    ...     distributed.is_main, distributed.world_size
    (True, 1)
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    owns_group: bool = False

    @classmethod
    def from_environment(cls, device: str | None = None) -> Distributed:
        """Join the processes that torchrun started.

        Parameters
        ----------
        device : {"cpu", "cuda"}, optional
            cpu talks over gloo, cuda over nccl; default: cuda when there is a GPU.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size <= 1 or "RANK" not in os.environ:
            return cls()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(local_rank)
        owns_group = not dist.is_initialized()
        if owns_group:
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), local_rank, owns_group)

    def __enter__(self) -> Distributed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process group if this object began it."""
        if self.owns_group and dist.is_initialized():
            compat.end_process_group()

    def device(self, kind: str | None = None) -> torch.device:
        """Return where this process trains.

        Parameters
        ----------
        kind : {"cpu", "cuda"}, optional
            Default: cuda when there is a GPU.
        """
        if kind == "cpu" or not torch.cuda.is_available():
            if kind == "cuda":
                raise ConfigError("device: cuda was asked for, but torch sees no GPU")
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank)

    @property
    def active(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.active:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """Add `tensor` up over all processes, in place."""
        if self.active:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_object(self, value: T) -> T:
        """Return the value that the main process passed."""
        if not self.active:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        received: T = box[0]
        return received

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return `model`, or a wrapper of it that averages gradients over the processes.

        Buffers are not synchronised in each step: batch norm trains on each process's own
        batches, and :meth:`sync_buffers` makes the running statistics equal where it matters.
        """
        if not self.active:
            return model
        first = next(model.parameters())
        devices = [first.device.index] if first.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def sync_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's buffers: running statistics and masks."""
        if not self.active:
            return
        for buffer in model.buffers():
            # NNI keeps the masked weight of the last forward as a "buffer"; it has a gradient
            # and is made anew in each forward.
            if not buffer.requires_grad:
                dist.broadcast(buffer, src=0)


def from_main_process(value: Any) -> Any:
    """Return what the main process passed; alone, what was passed.

    A decision that may differ between the processes that train together (one that was measured,
    searched with a time limit, or computed by a GPU's atomics) is made equal by this.
    """
    if not several_processes():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def several_processes() -> bool:
    """Tell whether other processes train with this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def in_every_process(value: bool) -> bool:
    """Tell whether something holds in all processes that train together."""
    return summed(torch.tensor([float(not value)])).item() == 0


def summed(tensor: Tensor) -> Tensor:
    """Add a tensor up over the processes that train together; alone, return it."""
    if not several_processes():
        return tensor
    cuda = dist.get_backend() == "nccl"
    total = tensor.cuda() if cuda else tensor.clone()
    dist.all_reduce(total)
    return total.to(tensor.device)


def process_number() -> tuple[int, int]:
    """Return the number of this process, and how many train together."""
    return (dist.get_rank(), dist.get_world_size()) if several_processes() else (0, 1)
