"""Networks that couple channels in every way the pruners have to handle, and how they train."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nni_gconv.speedup import ModelSpeedup
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.distributed import Distributed
from nni_gconv.training.evaluator import LoopEvaluator, make_evaluator
from nni_gconv.training.settings import TrainSettings


def conv(inside: int, outside: int, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, padding=size // 2, **options)


def plain_net() -> nn.Sequential:
    """Two convolutions, the first with a bias, and a linear head."""
    return nn.Sequential(
        conv(3, 12), nn.ReLU(), conv(12, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


def mobile_net() -> nn.Sequential:
    """Depthwise and pointwise convolutions."""
    return nn.Sequential(
        conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        conv(8, 8, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        conv(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        conv(16, 16, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        conv(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


class GroupBlock(nn.Module):
    """A residual block with a grouped convolution in the middle."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = conv(channels, 16, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.conv1, self.norm1 = conv(16, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.conv2, self.norm2 = conv(24, 24, groups=4, bias=False), nn.BatchNorm2d(24)
        self.conv3, self.norm3 = conv(24, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        x = (x + self.norm3(self.conv3(y))).relu()
        return self.head(x.mean((2, 3)))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms the statistics, scales and shifts of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -1.0, 1.0),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model


def bottleneck(seed: int = 0) -> nn.Module:
    """Wide, narrow, wide again, on digits, with weights and norms at random."""
    torch.manual_seed(seed)
    return randomised(
        nn.Sequential(
            conv(1, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            conv(16, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(),
            conv(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        )
    )  # fmt: skip


def loop_evaluator(
    model: nn.Module,
    folder: Path,
    epochs: int = 1,
    *,
    resume: bool = False,
    batch: int = 32,
    distributed: Distributed | None = None,
    train_size: int = 180,
    **optimizer: float,
) -> LoopEvaluator:
    """Our evaluator on digits: five steps an epoch."""
    processes = distributed or Distributed()
    data = DataSettings(name="digits", batch_size=batch, train_size=train_size, test_size=40)
    loaders = make_loaders(
        load_data(data), data, seed=0, device="cpu",
        rank=processes.rank, world_size=processes.world_size,
    )  # fmt: skip
    return make_evaluator(
        model, loaders, TrainSettings(epochs=epochs, optimizer={"lr": 0.1, **optimizer}),
        directory=Path(folder), device="cpu", progress=False, resume=resume, distributed=processes,
    )  # fmt: skip


def made_small(pruner, masks, example: Tensor | None = None) -> nn.Module:
    """Make the small network, which has to give in float64 what the masked one gives.

    `example` has one sample, by default a digit.
    """
    shape = (1, 8, 8) if example is None else example.shape[1:]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, *shape, dtype=torch.float64, generator=generator)
    net = pruner.bound_model.double().eval()
    with torch.no_grad():
        masked = net(x)
    pruner.unwrap_model()
    small = ModelSpeedup(net, x, masks).speedup_model()
    with torch.no_grad():
        assert torch.allclose(small(x), masked, rtol=1e-9, atol=1e-11)
    return small
