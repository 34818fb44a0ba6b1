"""Batch norm statistics for weights that have changed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nni_gconv.errors import DataError
from nni_gconv.profiling import samples_in

if TYPE_CHECKING:
    from collections.abc import Iterator


def recalibrate_bn(
    model: nn.Module, batches: Iterable[Any], *, max_batches: int | None = None
) -> int:
    """Estimate the running mean and variance of every batch norm anew, without training.

    Pruning changes what reaches a batch norm while its statistics stay those of the dense
    network. Averaging the statistics of some hundred images often recovers most of the accuracy
    lost before fine-tuning.

    Parameters
    ----------
    model : nn.Module
        Changed in place: only the running statistics. Training flags are left as found.
    batches : iterable
        Inputs, or tuples whose first item is the input, such as a training loader gives.
    max_batches : int, optional
        Use only so many.

    Returns
    -------
    int
        Number of batches averaged. Every image counts the same.

    Raises
    ------
    DataError
        `batches` is empty, or has one with a single value for each channel, whose variance is
        unknown. The statistics are left as they were then, and whatever else a forward raises.

    Examples
    --------
    >>> net = nn.Sequential(nn.BatchNorm2d(3))
    >>> recalibrate_bn(net, [torch.full((4, 3, 2, 2), 5.0)])
    1
    >>> net[0].running_mean.tolist()
    [5.0, 5.0, 5.0]
    """
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), None)
    count = images = 0
    with _averaging(model, norms), torch.no_grad():
        for batch in batches:
            if max_batches is not None and count >= max_batches:
                break
            if count == 0:
                # Only now: an empty iterable must not cost the statistics.
                for norm in norms:
                    norm.reset_running_stats()
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            own = samples_in(inputs) or 1
            images += own
            for norm in norms:
                norm.momentum = own / images
            model(inputs.to(device) if isinstance(inputs, Tensor) else inputs)
            count += 1
    if not count:
        raise DataError("recalibrate_bn: there are no batches to take statistics from")
    return count


@contextmanager
def _averaging(model: nn.Module, norms: list[Any]) -> Iterator[None]:
    """Let only batch norms train; put everything back after, statistics only where it fails."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    statistics = [{k: t.clone() for k, t in norm.named_buffers(recurse=False)} for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
    try:
        yield
    except BaseException as error:
        for norm, before in zip(norms, statistics, strict=True):
            for name, tensor in before.items():
                getattr(norm, name).copy_(tensor)
        if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
            raise DataError(
                "recalibrate_bn: of a batch of one image a batch norm sees one value for each "
                "channel, which has no variance; give batches of at least two images"
            ) from error
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
