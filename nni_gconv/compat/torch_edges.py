"""Rough edges of torch: tracing, counting, exporting."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "export_onnx",
    "export_program",
    "flop_formulas",
    "is_torch_file",
    "load_exported_program",
    "plain_attention",
    "reason_of",
    "run_onnx",
    "save_exported_program",
]


# Torch itself is imported only where it is needed: who launches experiments does without it.
_TORCH = importlib.util.find_spec("torch")
_TORCH_ROOT = str(Path(_TORCH.origin).parent) if _TORCH is not None and _TORCH.origin else "torch"


def is_torch_file(file: str) -> bool:
    """Tell whether a source file belongs to torch itself and not to the user."""
    return file.startswith(_TORCH_ROOT + os.sep) or "/torch/nn/" in file or "/torch/_" in file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's tracer for a while: its warnings, its logs, the half-made graph it prints.

    What went wrong is in the exception.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def export_program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``torch.export`` without its output; modules keep their own training flags.

    ``strict=False`` follows ordinary Python and needs no bytecode analysis, which is what makes
    it work on every Python version and in about a second on a large network.
    """
    import torch

    with _quiet(), torch.no_grad():
        return torch.export.export(model, args, kwargs or None, strict=False)


def reason_of(error: BaseException) -> str:
    """Put what an error of torch's tracer says on one line.

    Of a branch on the values of a tensor it says pages of symbols.
    """
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return "what is run next depends on the values of a tensor"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def flop_formulas() -> dict[Any, Any]:
    """Return formulas that torch's FLOP counter lacks in some of the versions we support.

    Attention on the CPU has a kernel of its own, whose formula came after torch 2.6; without it a
    transformer would count as if attention were free.
    """
    import torch
    from torch.utils import flop_counter

    name = "_scaled_dot_product_flash_attention_for_cpu"
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or packet in flop_counter.flop_registry:
        return {}
    return {packet: flop_counter.sdpa_flop}


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Switch off the fused inference path of torch's transformer layers for a while.

    In eval mode they run as one opaque operator each, in which nothing can be counted.
    """
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    dynamic_shapes: Any,
) -> None:
    """Write ONNX through ``torch.export``, weights in the one file."""
    import torch

    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"export to ONNX needs {package}: pip install 'nni-gconv[export]'")
    with _quiet(), contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            model,
            args,
            str(path),
            kwargs=kwargs or None,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            external_data=False,
            verbose=False,
        )


def run_onnx(path: Path, inputs: list[Any]) -> list[Any]:
    """Run an ONNX file on the CPU with the model's inputs in order."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    feed = {
        i.name: x.detach().cpu().numpy() for i, x in zip(session.get_inputs(), tensors, strict=True)
    }
    return [torch.from_numpy(y) for y in session.run(None, feed)]


def save_exported_program(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    dynamic_shapes: Any,
) -> None:
    """Write a ``.pt2`` file."""
    import torch

    with _quiet(), torch.no_grad(), path.open("wb") as file:
        program = torch.export.export(
            model, args, kwargs or None, dynamic_shapes=dynamic_shapes, strict=False
        )
        torch.export.save(program, file)


def load_exported_program(path: Path) -> Any:
    """Load a ``.pt2`` file as a module."""
    import torch

    with path.open("rb") as file:
        return torch.export.load(file).module()
