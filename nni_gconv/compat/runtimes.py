"""Running a network by torch's compiler, ONNX Runtime or OpenVINO, on a CPU or as torch can."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Session = Callable[[list[Any]], list[Any]]


def compiled(model: nn.Module) -> Any:
    """Return a model that ``torch.compile`` makes at its first call, its weights constants."""
    import torch

    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        return torch.compile(model, options={"freezing": True})


def onnxruntime_session(path: Path, threads: int) -> Session:
    """Load an ONNX file into ONNX Runtime on the CPU; arrays in, arrays out."""
    onnxruntime = _module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def openvino_session(path: Path, threads: int) -> Session:
    """Load an ONNX file into OpenVINO on the CPU, in float32; arrays in, arrays out."""
    openvino = _module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(str(path)), "CPU", settings)
    outputs = list(request.outputs)

    def run(arrays: list[Any]) -> list[Any]:
        found = request(arrays)
        return [found[output] for output in outputs]

    return run


def _module(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"backend {name}: the package is not installed: pip install {name}")
    return importlib.import_module(name)
