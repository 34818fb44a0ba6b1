"""Files for other runtimes, each compared with the model before it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nni_gconv import compat
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.files import atomic_path
from nni_gconv.speedup.trace import as_inputs

__all__ = ["export_model"]

#: Largest difference relative to the largest output that a float32 runtime may show.
TOLERANCE = 1e-4


def export_model(model: nn.Module, dummy_input: Any, path: str | Path) -> Path:
    """Export a model to ONNX or to torch's ``.pt2``, and check the file against the model.

    Parameters
    ----------
    model : nn.Module
        Exported in eval mode, float32; left as it was found.
    dummy_input : Tensor, tuple or dict
        Example arguments; the first dimension of every tensor is the batch and stays free.
    path : str or Path
        ``*.onnx`` (needs the ``export`` extra) or ``*.pt2``.

    Returns
    -------
    Path
        The file; nothing is left behind when the check fails.

    Raises
    ------
    ConfigError
        Another suffix, or the extra is not installed.
    CheckpointError
        The exported file gives other outputs than the model.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "net.pt2"
    >>> export_model(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8), file).name
    'net.pt2'
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"export: {path.name} has no known suffix (allowed: .onnx, .pt2)")
    args, kwargs = as_inputs(dummy_input)
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        samples = pytree.tree_map(_two_samples, (args, kwargs))
        with torch.no_grad():
            expected = _tensors(model(*samples[0], **samples[1]))
        with atomic_path(path) as temporary:
            if path.suffix == ".onnx":
                compat.export_onnx(model, samples[0], samples[1], temporary)
                got = compat.run_onnx(temporary, [*samples[0], *samples[1].values()])
            else:
                compat.save_exported_program(model, samples[0], samples[1], temporary)
                with torch.no_grad():
                    got = _tensors(
                        compat.load_exported_program(temporary)(*samples[0], **samples[1])
                    )
            _compare(expected, got, path)
    finally:
        for module in training:
            module.training = True
    return path


def _two_samples(value: Any) -> Any:
    """Random data with a batch of two: a batch of one would be taken for a constant."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    generator = torch.Generator().manual_seed(0)
    shape = (2, *value.shape[1:])
    return torch.randn(shape, generator=generator).to(value.device, value.dtype)


def _tensors(result: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]


def _compare(expected: list[Tensor], got: list[Tensor], path: Path) -> None:
    if len(expected) != len(got):
        raise CheckpointError(f"{path.name}: {len(got)} outputs, the model has {len(expected)}")
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        scale = float(a.abs().max()) or 1.0
        worst = float("inf")
        if a.shape == b.shape:
            worst = float((a.detach().cpu() - b.detach().cpu()).abs().max()) / scale
        if not worst <= TOLERANCE:
            raise CheckpointError(
                f"{path.name}: output {number} differs from the model's by {worst:.1e} of its "
                "largest value; the file was not kept"
            )
