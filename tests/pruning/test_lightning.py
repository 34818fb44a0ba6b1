"""NNI's evaluator around a trainer of Lightning itself; runs where nni-gconv[lightning] is."""

from __future__ import annotations

import nni
import pytest
import torch
from nni.compression import LightningEvaluator
from nni.compression.pruning import AGPPruner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nni_gconv import (
    FPGMPruner,
    GroupConvPruner,
    GSparsityPruner,
    ModelSpeedup,
    ProxSGD,
    ShufflePruner,
    SlimmingPruner,
)

pl = pytest.importorskip("pytorch_lightning")

CONVS = [{"op_types": ["Conv2d"]}]
HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
STEPS = 4  # of an epoch


class Net(pl.LightningModule):
    """Three convolutions with norms."""

    def __init__(self, optimizer=torch.optim.SGD, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip
        self.kind, self.settings, self.steps = optimizer, {"lr": 0.05, **settings}, 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        self.steps += 1
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return nni.trace(self.kind)(self.parameters(), **self.settings)


class Images(pl.LightningDataModule):
    """Noise in four classes."""

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16 * STEPS, 1, 8, 8, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(16 * STEPS) % 4), 16)


def evaluator(folder):
    trainer = nni.trace(pl.Trainer)(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip
    made = LightningEvaluator(trainer, nni.trace(Images)(), dummy_input=torch.zeros(1, 1, 8, 8))
    made.steps_per_epoch = STEPS
    return made


def assert_small_equals_masked(net, pruner, masks):
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net.double().eval()
    with torch.no_grad():
        masked = net(x)
        pruner.unwrap_model()
        small = ModelSpeedup(net, x, masks).speedup_model()
        assert torch.allclose(small(x), masked, rtol=1e-9, atol=1e-11)
    return small


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        (FPGMPruner, HALF, {"schedule": "cubic"}),
        (SlimmingPruner, CONVS, {"budget": {"macs": 0.5}, "strength": 1e-2}),
        (GSparsityPruner, CONVS, {"budget": {"macs": 0.5}}),
        (ShufflePruner, CONVS, {"budget": {"macs": 0.5}}),
        (GroupConvPruner, CONVS, {"budget": {"macs": 0.5}, "shaping": 1.0}),
    ],
)
def test_every_pruner_trains_in_it(tmp_path, kind, config, options):
    net = Net()
    pruner = kind(net, config, evaluator(tmp_path), **options)
    _, masks = pruner.compress(max_epochs=3)
    assert net.steps == 3 * STEPS
    assert (pruner.clock.epoch, pruner.clock.step) == (3, 3 * STEPS)
    small = assert_small_equals_masked(net, pruner, masks)
    weights = sum(m.weight.numel() for m in small.modules() if isinstance(m, nn.Conv2d))
    assert weights <= 0.55 * (72 + 576 + 1152)


def test_proxsgd_gets_its_gains(tmp_path):
    net = Net(ProxSGD, exact_zeros=True)
    gains = []

    class Watched(GSparsityPruner):
        def before_step(self):
            super().before_step()
            gains.append({group["mu"] for group in self.optimizer.param_groups})

    pruner = Watched(net, CONVS, evaluator(tmp_path), gain=5.0)
    _, masks = pruner.compress(max_epochs=3)
    assert gains == [{None, 5.0}] * 3 * STEPS
    assert_small_equals_masked(net, pruner, masks)


@pytest.mark.parametrize("owner", ["pruner", "schedule"])
def test_a_number_of_steps_and_a_schedule_of_nni(tmp_path, owner):
    net, made = Net(), evaluator(tmp_path)
    if owner == "pruner":
        pruner = AGPPruner(FPGMPruner(net, HALF, made), interval_steps=1, total_times=4)
    else:
        inner = FPGMPruner(net, HALF, dummy_input=torch.zeros(1, 1, 8, 8))
        pruner = AGPPruner(inner, interval_steps=1, total_times=4, evaluator=made)
    _, masks = pruner.compress(max_steps=5, max_epochs=None)
    assert net.steps == 5
    assert int(masks["net.0"]["weight"].flatten(1).any(1).sum()) == 4
