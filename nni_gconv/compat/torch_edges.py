"""Rough edges of torch: fake tensors, counting, exporting."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from packaging.version import Version

from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

#: Torch 2.6 cannot turn a batch norm into ONNX with the onnxscript of today.
_ONNX_TORCH = "2.7"

T = TypeVar("T")
R = TypeVar("R")

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


@contextlib.contextmanager
def fake_tensors() -> Iterator[Callable[[Tensor], Tensor]]:
    """Let operators run on fake tensors for a while, silently; yields what makes one of a tensor.

    Fake tensors have shape, type and device and no numbers.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode.from_tensor


def is_fake(tensor: Tensor) -> bool:
    """Tell a fake tensor from a real one."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def is_scripted(module: nn.Module) -> bool:
    """Tell a module that TorchScript runs: it takes no hooks, and its class has no forward."""
    import torch

    return isinstance(module, torch.jit.ScriptModule)


def type_remedy(model: nn.Module, dummy_input: Any, which: str = "dummy_input is") -> str:
    """Say what to do where an input that failed is of another type than the model; else ""."""
    import torch
    from torch.utils import _pytree as pytree

    shape = dummy_input if isinstance(dummy_input, tuple | list) else ()
    if shape and all(isinstance(n, int) for n in shape):
        return f"; dummy_input is a shape, not a tensor: give torch.randn{tuple(shape)}"
    leaves = [x for x in pytree.tree_leaves(dummy_input) if isinstance(x, torch.Tensor)]
    # Of whole numbers those of images; others may be indices.
    given = {
        x.dtype for x in leaves if x.is_floating_point() or (x.dtype == torch.uint8 and x.dim() > 2)
    }
    wanted = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if len(wanted) != 1 or not given or given == wanted:
        return ""
    (kind,) = wanted
    names, own = (", ".join(sorted(map(str, one))) for one in (given, wanted))
    return f"; {which} {names}, the model {own}: give {which.split(maxsplit=1)[0]}.to({kind})"


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Do work in as many threads as torch has for one operator, which has one alone meanwhile.

    Many small operators gain nothing by several threads each, and their numbers depend on how many
    these are; here they do not. Results come in order.
    """
    import torch

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # else threads that begin later have one, too


@contextlib.contextmanager
def real_tensors() -> Iterator[None]:
    """Run operators for real inside :func:`fake_tensors`."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        yield


def end_process_group() -> None:
    """End the group of processes that train together.

    Until torch 2.8 that waits, with the interpreter's lock held, for gloo's threads, which need the
    lock to let go of the tensors of the last reduction.
    """
    import torch.distributed as dist

    time.sleep(0.2)  # gives the lock away
    dist.destroy_process_group()


def reason_of(error: BaseException) -> str:
    """Put what an error of torch's tracer says on one line.

    Of a branch on the values of a tensor it says pages of symbols.
    """
    kind = type(error).__name__
    if kind == "DataDependentOutputException":
        return "what is run next depends on the values of a tensor"
    if kind == "DynamicOutputShapeException":
        return f"the shape of what {error} returns depends on the values of a tensor"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def flop_formulas() -> dict[Any, Any]:
    """Return formulas that torch's FLOP counter lacks in some of the versions we support.

    Attention on the CPU has a kernel of its own, whose formula came with torch 2.15; without it a
    transformer would count as if attention were free.
    """
    import torch
    from torch.utils import flop_counter

    def attention(
        query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
    ) -> int:
        return flop_counter.sdpa_flop_count(query, key, value)

    name = "_scaled_dot_product_flash_attention_for_cpu"
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or packet in flop_counter.flop_registry:
        return {}
    return {packet: attention}


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


def missing_for_onnx() -> list[str]:
    """Name what ONNX files need and this installation lacks."""
    packages = ("onnx", "onnxscript", "onnxruntime")
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    with contextlib.suppress(PackageNotFoundError):
        found = version("torch")
        if Version(found) < Version(_ONNX_TORCH):
            missing.append(f"torch {_ONNX_TORCH} or newer (this is {found})")
    return missing


def check_onnx() -> None:
    """Raise a ConfigError where a package that ONNX files need is missing or too old."""
    missing = missing_for_onnx()
    if missing:
        needed = ", ".join(missing)
        raise ConfigError(f"export to ONNX needs {needed}: pip install 'nni-gconv[export]'")


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    dynamic_shapes: Any,
) -> None:
    """Write ONNX through ``torch.export``, weights in the one file."""
    import torch

    check_onnx()
    with _quiet(), contextlib.redirect_stdout(io.StringIO()):
        # Given the model itself, torch 2.7 and 2.8 would go on with one branch of a forward whose
        # operators depend on values.
        torch.onnx.export(
            _exported(model, args, kwargs, dynamic_shapes),
            (),
            str(path),
            dynamo=True,
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

    with _quiet(), path.open("wb") as file:
        torch.export.save(_exported(model, args, kwargs, dynamic_shapes), file)


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    import torch

    with torch.no_grad():
        return torch.export.export(
            model, args, kwargs or None, dynamic_shapes=dynamic_shapes, strict=False
        )


def load_exported_program(path: Path) -> Any:
    """Load a ``.pt2`` file as a module."""
    import torch

    with path.open("rb") as file:
        return torch.export.load(file).module()


def usable_cores() -> int:
    """Count the cores that this process may compute on, less what a container's limit takes away.

    Torch starts a thread for each core that the machine has; more than may run wait for each
    other.
    """
    from joblib import cpu_count

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where cores cannot be told from their threads
        return int(cpu_count(only_physical_cores=True))
