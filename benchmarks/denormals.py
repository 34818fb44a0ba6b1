"""Do tiny weights cost time? A trained network beside the same with random weights.

    python benchmarks/denormals.py WEIGHTS
    python benchmarks/denormals.py WEIGHTS --networks resnet56 --batch 1

WEIGHTS holds the files that benchmarks/pretrained.py names (pip install onnxruntime). Norms whose
scales went to nothing in training leave weights below the smallest normal number of float32 when
they are folded. Whole networks in turn: folded as torch does it, folded as we do it, in ONNX
Runtime, which folds by itself, with its defaults, and as we time it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from pretrained import NETWORKS
from rich.console import Console
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from nni_gconv import compat
from nni_gconv.inference import fold_batch_norms
from nni_gconv.profiling import compare_latency
from nni_gconv.training.zoo import create_model


class Session(nn.Module):
    """An ONNX file in ONNX Runtime with its defaults, on one thread."""

    def __init__(self, path: str) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(path, options)
        self.name = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return torch.from_numpy(self.session.run(None, {self.name: x.numpy()})[0])


def as_is(model: nn.Module, x: Tensor) -> nn.Module:
    """Load a model into ONNX Runtime as anyone would."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        compat.export_onnx(model, (x,), {}, path, None)
        return Session(str(path))


def tiny(model: nn.Module) -> int:
    """Count weights that are denormal numbers."""
    least = torch.finfo(torch.float32).tiny
    return sum(int(((p != 0) & (p.abs() < least)).sum()) for p in model.parameters())


def row(console: Console, what: str, models: dict[str, Any], x: Tensor, **options: Any) -> None:
    """Time two networks in turn and print the ratio with its interval."""
    found = compare_latency(models, x, batch_size=len(x), min_seconds=2, **options)
    low, high = found.ratio_intervals["trained"]
    ratio = f"{found.ratios['trained']:.2f} ({low:.2f} to {high:.2f})"
    line = f"  {what}: {ratio} of what random weights take"
    console.print(line, highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--networks", nargs="+", default=["resnet56b", "resnet56"])
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, console = torch.randn(options.batch, 3, 32, 32), Console()
    for network in (n for n in NETWORKS if n.model in options.networks and not n.pruned):
        models = {"random": create_model(network.model, num_classes=10).eval()}
        file = str(options.weights / network.file)
        models["trained"] = create_model(network.model, num_classes=10, weights=file).eval()
        ways = {
            "as trained": models,
            "folded by torch": {k: fuse(m) for k, m in models.items()},
            "folded by us": {k: fold_batch_norms(m, x) for k, m in models.items()},
        }
        console.print(f"{network.model}, batch {len(x)}, torch {torch.__version__}")
        for what, pair in ways.items():
            row(console, f"{what}, {tiny(pair['trained'])} denormal weights", pair, x)
        sessions = {name: as_is(model, x) for name, model in models.items()}
        row(console, "ONNX Runtime, its defaults", sessions, x)
        row(console, "ONNX Runtime, as we time it", models, x, backend="onnxruntime")


if __name__ == "__main__":
    main()
