"""Running a network by torch's compiler, ONNX Runtime or OpenVINO, on a CPU or as torch can."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Session = Callable[[list[Any]], list[Any]]


class Compiled:
    """A model by ``torch.compile``, its weights constants, made at its first call for its shapes.

    The compiler keeps what it made with the code of the function, eight times at most; of further
    models of a class it then runs the code as it is, and says so in a log. So each model gets a
    code of its own here, and what would run eagerly or compile again is torch's RuntimeError.
    """

    def __init__(self, model: nn.Module) -> None:
        import torch

        def call(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **kwargs)

        own = FunctionType(
            call.__code__.replace(), call.__globals__, "call", None, call.__closure__
        )
        logging.getLogger("torch._inductor").setLevel(logging.ERROR)
        self._run = torch.compile(own, dynamic=False, options={"freezing": True})
        self._made = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        import torch

        if self._made:
            with torch.compiler.set_stance("fail_on_recompile"):
                return self._run(*args, **kwargs)
        # Their names of torch 2.6, which later ones know too.
        limits = {"cache_size_limit": 2**16, "fail_on_cache_limit_hit": True}
        with warnings.catch_warnings(), torch._dynamo.config.patch(limits):
            warnings.simplefilter("ignore")
            found = self._run(*args, **kwargs)
        self._made = True
        return found


def onnxruntime_session(path: Path, threads: int) -> Session:
    """Load an ONNX file into ONNX Runtime on the CPU; arrays in, arrays out.

    It folds norms when it loads. Scales near zero make denormal weights, with which a network can
    take three times as long; they count as zero, as OpenVINO has it by itself.
    """
    onnxruntime = _module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # For threads of its own; the first session of a process lets it stand for this one, too.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    with _denormals_as_zero():
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    names = [i.name for i in session.get_inputs()]

    def run(arrays: list[Any]) -> list[Any]:
        with _denormals_as_zero():
            return session.run(None, dict(zip(names, arrays, strict=True)))

    return run


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Let this thread's arithmetic take denormal numbers for zero, for a while."""
    import torch

    before = not bool(torch.full((1,), 1e-40))
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


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
