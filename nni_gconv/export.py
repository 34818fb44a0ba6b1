"""Files for other runtimes, each compared with the model before it is kept."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import _pytree as pytree

from nni_gconv import compat
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.files import atomic_path
from nni_gconv.speedup.channels import op_name
from nni_gconv.speedup.trace import as_inputs, trace

__all__ = ["export_model", "fold_batch_norms"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FOLDED = ("conv1d", "conv2d", "conv3d", "batch_norm")

#: Largest difference relative to the largest output that a float32 runtime may show.
TOLERANCE = 1e-4


def export_model(
    model: nn.Module, dummy_input: Any, path: str | Path, *, fold_bn: bool = False
) -> Path:
    """Export a model to ONNX or to torch's ``.pt2``, and check the file against the model.

    Parameters
    ----------
    model : nn.Module
        Exported in eval mode, float32; left as it was found.
    dummy_input : Tensor, tuple or dict
        Example arguments; the first dimension of every tensor is the batch and stays free.
    path : str or Path
        ``*.onnx`` (needs the ``export`` extra) or ``*.pt2``.
    fold_bn : bool, default False
        Fold batch norms into the convolutions before them, see :func:`fold_batch_norms`.

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
    if fold_bn:
        model = fold_batch_norms(model, dummy_input)
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


def fold_batch_norms(model: nn.Module, dummy_input: Any) -> nn.Module:
    """Return a copy for inference whose batch norms are part of the convolutions before them.

    A norm is folded when it alone reads a convolution and both are called once; others stay.

    Parameters
    ----------
    model : nn.Module
        Left as it was found.
    dummy_input : Tensor, tuple or dict
        Example arguments, for tracing.

    Returns
    -------
    nn.Module
        In eval mode, with ``nn.Identity`` where a norm was folded.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> type(fold_batch_norms(net, torch.zeros(1, 3, 8, 8))[1]).__name__
    'Identity'
    """
    graph = trace(model, dummy_input)
    calls = Counter(graph.owner(n) for n in graph.nodes if op_name(n) in _FOLDED)
    model = copy.deepcopy(model).eval()
    modules = dict(model.named_modules())
    for node in graph.nodes:
        if op_name(node) != "batch_norm":
            continue
        source, norm = node.args[0], graph.owner(node)
        conv = graph.owner(source) if isinstance(source, Node) else ""
        alone = isinstance(source, Node) and len(source.users) == 1
        if not alone or calls[conv] != 1 or calls[norm] != 1:
            continue
        if not isinstance(modules.get(conv), _CONVOLUTIONS) or norm not in modules:
            continue
        model.set_submodule(conv, fuse_conv_bn_eval(modules[conv], modules[norm]))
        model.set_submodule(norm, nn.Identity())
    return model


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
