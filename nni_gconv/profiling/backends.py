"""A network as another back-end runs it: torch's compiler, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nni_gconv import compat
from nni_gconv.errors import ConfigError, NniGconvError, unknown_name
from nni_gconv.profiling.forward import device_of, measuring, run
from nni_gconv.profiling.rounds import cpu_threads

#: What can run a network; ``eager`` is torch as it is.
BACKENDS = ("eager", "compile", "onnxruntime", "openvino")


def on_backend(model: nn.Module, inputs: Any, backend: str, *, threads: int = 1) -> nn.Module:
    """Return a network as a back-end runs it, compiled for inputs like the ones given.

    Parameters
    ----------
    model : nn.Module
        Left as it was found. For ONNX Runtime and OpenVINO on the CPU and in float32.
    inputs : Tensor, tuple or dict
        What it will be called on.
    backend : {"eager", "compile", "onnxruntime", "openvino"}
        ``compile`` is ``torch.compile`` with frozen weights; the other two run an ONNX file.
    threads : int, default 1
        CPU threads, for what fixes them when it loads.

    Returns
    -------
    nn.Module
        For inference; of ``eager`` the model itself.

    Raises
    ------
    ConfigError
        An unknown back-end, one that is not installed, or one that cannot run the model: says why.

    Examples
    --------
    >>> net = nn.Linear(4, 2)
    >>> on_backend(net, torch.zeros(1, 4), "eager") is net
    True
    """
    if backend not in BACKENDS:
        raise ConfigError(unknown_name("backend", backend, BACKENDS, "latency"))
    if backend == "eager":
        return model
    try:
        with measuring(model), cpu_threads(threads):
            if backend == "compile":
                made = _CompiledModel(model)
                run(made, inputs)  # it is now that it compiles
                return made
            return _by_file(model, inputs, backend, threads)
    except NniGconvError:
        raise
    except Exception as error:
        reason = compat.reason_of(error)
        raise ConfigError(
            f"backend {backend}: cannot run {type(model).__name__}: {reason}"
        ) from error


def _by_file(model: nn.Module, inputs: Any, backend: str, threads: int) -> nn.Module:
    if device_of(model).type != "cpu":
        raise ConfigError(f"backend {backend}: runs on the CPU; the model is on {device_of(model)}")
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    else:
        args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    load = compat.openvino_session if backend == "openvino" else compat.onnxruntime_session
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        compat.export_onnx(model, args, kwargs, path, None)
        return _FileModel(load(path, threads))


class _CompiledModel(nn.Module):
    """A network by torch's compiler."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._compiled = compat.Compiled(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run what was compiled."""
        return self._compiled(*args, **kwargs)


class _FileModel(nn.Module):
    """A network of another runtime that is called as the one it was made of."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run on the tensors among the arguments, in order."""
        given = tree_leaves((args, kwargs))
        arrays = [x.detach().numpy() for x in given if isinstance(x, Tensor)]
        found = [torch.from_numpy(y) for y in self._session(arrays)]
        return found[0] if len(found) == 1 else tuple(found)
