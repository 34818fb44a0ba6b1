"""NNI's quantisers after and beside our pruners."""

from __future__ import annotations

import pytest
import torch
from nni.compression.distillation import (
    Adaptive1dLayerwiseDistiller,
    DynamicLayerwiseDistiller,
)
from nni.compression.quantization import LsqQuantizer, PtqQuantizer, QATQuantizer
from nni_evaluator import evaluator
from torch import nn

from nni_gconv import FPGMPruner, ModelSpeedup
from nni_gconv.errors import ConfigError

X = torch.zeros(1, 3, 8, 8)
HALF = [{"op_names": ["conv1"], "sparse_ratio": 0.5}]
FUSED = {"fuse_names": [("conv1", "bn1", "relu")]}
QUANTIZERS = pytest.mark.parametrize("kind", [LsqQuantizer, QATQuantizer])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        self.conv2 = nn.Conv2d(16, 4, 3)

    def forward(self, x):
        return self.conv2(self.relu(self.bn1(self.conv1(x)))).mean((2, 3))


def int8(**more):
    return [
        {
            "op_names": ["conv1"],
            "target_names": ["weight", "_input_", "_output_"],
            "quant_dtype": "int8",
            "quant_scheme": "symmetric",
            "granularity": "default",
            **more,
        }
    ]


def small_net():
    net = Net()
    pruner = FPGMPruner(net, HALF, dummy_input=X)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return ModelSpeedup(net, X, masks).speedup_model()


@pytest.mark.parametrize("kind", [LsqQuantizer, QATQuantizer, PtqQuantizer])
@pytest.mark.parametrize("fused", [{}, FUSED], ids=["plain", "fused"])
def test_speed_up_then_quantise(kind, fused):
    """The small network's weights are on a grid of at most 256 numbers while it runs."""
    net = small_net()
    quantizer = kind(net, int8(**fused), evaluator(net))
    quantizer.track_forward(torch.randn(2, 3, 8, 8))
    _, calibration = quantizer.compress(4, None)
    assert net.conv1._nni_wrapper.weight.shape[0] == 8
    assert set(calibration["conv1"]) == {"weight", "_input_0", "_output_0"}
    scale = calibration["conv1"]["weight"]["scale"]
    net.eval()(torch.randn(2, 3, 8, 8))
    steps = net.conv1.weight / scale
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert 2 < len(steps.round().unique()) <= 256


@QUANTIZERS
def test_fusing_what_a_pruner_holds_says_speed_up_first(kind):
    net = Net()
    pruner = FPGMPruner(net, HALF, evaluator(net), dummy_input=X)
    with pytest.raises(
        ConfigError, match=r"bn1 is masked.*speed up first, then quantise"
    ) as caught:
        kind.from_compressor(pruner, int8(**FUSED))
    assert "\n" not in str(caught.value)


def test_other_errors_of_nni_stay_its_own():
    net = Net()
    pruner = FPGMPruner(net, HALF, evaluator(net), dummy_input=X)
    with pytest.raises(ValueError, match="can't be fused") as caught:
        QATQuantizer.from_compressor(pruner, int8(fuse_names=[("conv2", "bn1")]))
    assert not isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("kind", [DynamicLayerwiseDistiller, Adaptive1dLayerwiseDistiller])
def test_distil_prune_and_quantise_in_one_training(kind):
    """NNI's own test of fused compressors, with our pruner in the middle."""
    net, teacher = Net(), Net()
    match = {"op_names": ["conv2"], "lambda": 0.1, "apply_method": "mse"}
    distiller = kind(net, [match], evaluator(net), teacher, lambda batch, model: model(batch))
    if kind is Adaptive1dLayerwiseDistiller:
        distiller.track_forward(torch.randn(2, 3, 8, 8))
    pruner = FPGMPruner.from_compressor(distiller, HALF, dummy_input=X)
    quantizer = LsqQuantizer.from_compressor(pruner, int8())
    quantizer.compress(4, None)
    masks = pruner.get_masks()
    assert float(masks["conv1"]["weight"].mean()) == 0.5
    quantizer.unwrap_model()
    assert ModelSpeedup(net, X, masks).speedup_model().conv1.out_channels == 8


@QUANTIZERS
def test_beside_a_pruner_without_fusing(kind):
    """One training prunes and quantises; what it leaves of the masks can be cut."""
    net = Net()
    pruner = FPGMPruner(net, HALF, evaluator(net), dummy_input=X)
    quantizer = kind.from_compressor(pruner, int8())
    quantizer.track_forward(torch.randn(2, 3, 8, 8))
    quantizer.compress(4, None)
    masks = pruner.get_masks()
    assert float(masks["conv1"]["weight"].mean()) == 0.5
    quantizer.unwrap_model()
    assert ModelSpeedup(net, X, masks).speedup_model().conv1.out_channels == 8
