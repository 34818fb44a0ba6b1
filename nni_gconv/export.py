"""Files for other runtimes, each compared with the model before it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nni_gconv import compat
from nni_gconv.errors import CheckpointError, ConfigError, NniGconvError, check_model
from nni_gconv.files import atomic_path
from nni_gconv.graph import as_inputs, trace
from nni_gconv.inference import fold_batch_norms
from nni_gconv.profiling import DummyInput, measuring, run, with_batch

#: Largest difference relative to the largest output that a float32 runtime may show.
TOLERANCE = 1e-4

#: Batches the file is checked on. Not one, which tracing takes for a constant; and two of them,
#: since a file may hold the batch it was made with.
_BATCHES = (2, 3)


def export_model(
    model: nn.Module, dummy_input: Any, path: str | Path, *, fold_bn: bool = False
) -> Path:
    """Export a model to ONNX or to torch's ``.pt2``, and check the file against the model.

    Parameters
    ----------
    model : nn.Module
        Exported in eval mode; left as it was found. For ONNX in float32.
    dummy_input : Tensor, tuple or dict
        Example arguments. What is as long as the batch, the first dimension of the first tensor,
        stays free in the file; anything but tensors becomes a constant of it.
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
        Another suffix, the extra is not installed, the model does not run on `dummy_input` with
        batches of two and three, or it is no float32 model and the file is ONNX.
    TraceError
        The model cannot be traced; names the line of its forward.
    CheckpointError
        The exporter fails otherwise, or the file gives other outputs than the model: by more than
        1e-4 of the largest, on random inputs in both batches.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "net.pt2"
    >>> export_model(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8), file).name
    'net.pt2'
    """
    check_model(model)
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"export: {path.name} has no known suffix (allowed: .onnx, .pt2)")
    _check_types(model, path)
    samples = [_random_sample(dummy_input, batch) for batch in _BATCHES]
    with measuring(model):
        expected = [_run(model, sample) for sample in samples]
        exported = fold_batch_norms(model, samples[0]) if fold_bn else model
        with atomic_path(path) as temporary:
            try:
                got = _write(exported, samples, temporary)
            except NniGconvError:
                raise
            except Exception as error:
                trace(exported, dummy_input)  # says at which line it fails, if it does here too
                raise CheckpointError(
                    f"{path.name} cannot be written or read back: {_reason(error)}"
                ) from error
            for pair in zip(expected, got, strict=True):
                _compare(*pair, path)
    return path


def _check_types(model: nn.Module, path: Path) -> None:
    """Refuse what the ONNX runtime has no kernels for; torch runs its own file in any precision."""
    others = {t.dtype for t in model.state_dict().values() if t.is_floating_point()}
    others -= {torch.float32}
    if path.suffix == ".onnx" and others:
        raise ConfigError(
            f"export: the model is in {str(others.pop()).removeprefix('torch.')}, {path.name} "
            "would be run in float32: call model.float() first, or write a .pt2"
        )


def _write(model: nn.Module, samples: list[Any], path: Path) -> list[list[Tensor]]:
    """Write a file and return what it gives for each sample."""
    arguments = [as_inputs(sample) for sample in samples]
    args, kwargs = arguments[0]
    free = pytree.tree_map(_free_batch, *arguments)
    shapes = free[1] or free[0]
    if path.suffix == ".onnx":
        compat.export_onnx(model, args, kwargs, path, shapes)
        return [compat.run_onnx(path, pytree.tree_leaves(given)) for given in arguments]
    compat.save_exported_program(model, args, kwargs, path, shapes)
    program = compat.load_exported_program(path)
    return [_tensors(program(*args, **kwargs)) for args, kwargs in arguments]


def _free_batch(first: Any, second: Any) -> dict[int, Any] | None:
    """Leave the first dimension open where two samples of other batches differ in it."""
    batched = isinstance(first, Tensor) and first.shape != second.shape
    return {0: torch.export.Dim.DYNAMIC} if batched else None


def _random_sample(dummy_input: DummyInput, batch: int) -> Any:
    """Give an input a batch, and random numbers where it holds floating-point ones."""
    generator = torch.Generator().manual_seed(0)

    def randomise(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.dim():
            return value
        return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)

    return pytree.tree_map(randomise, with_batch(dummy_input, batch))


def _run(model: nn.Module, sample: Any) -> list[Tensor]:
    try:
        return _tensors(run(model, sample))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"export: {type(model).__name__} does not run on dummy_input with a batch of "
            f"{_BATCHES[0]} and {_BATCHES[1]}: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of what an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return compat.reason_of(error)


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
