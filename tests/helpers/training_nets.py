"""Small networks and loaders for the tests of the training loop."""

from __future__ import annotations

import torch
from torch import nn

from nni_gconv.training.data import DataSettings, Loaders, load_data, make_loaders


def conv_net(seed: int = 0, dropout: float = 0.0, channels: int = 3) -> nn.Sequential:
    """Convolution, batch norm, dropout, linear: everything that a resume could get wrong."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def plain_net(seed: int = 0) -> nn.Sequential:
    """No batch norm, no dropout: the loss of a batch is the mean over its parts."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 4),
    )  # fmt: skip


def synthetic(batch_size: int = 16, rank: int = 0, world_size: int = 1, **options) -> Loaders:
    """72 training, 8 validation and 24 test images of 8x8 pixels in 4 classes."""
    settings = DataSettings(
        name="synthetic",
        batch_size=batch_size,
        image_size=8,
        num_classes=4,
        augment=True,
        **{"train_size": 80, "test_size": 24, **options},
    )
    bundle = load_data(settings, seed=3)
    return make_loaders(bundle, settings, seed=3, device="cpu", rank=rank, world_size=world_size)


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
