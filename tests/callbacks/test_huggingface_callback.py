"""Our callback in a Trainer of transformers itself; runs where nni-gconv[transformers] is."""

import pytest
import torch
from torch import nn

from nni_gconv.errors import ConfigError

transformers = pytest.importorskip("transformers")

STEPS, EPOCHS = 4, 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


X = {"pixel_values": torch.zeros(1, 1, 8, 8)}


def train(folder, net, callback, **options):
    pixels = torch.randn(16 * STEPS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = [{"pixel_values": p, "labels": i % 4} for i, p in enumerate(pixels)]
    given = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=16,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(net, given, train_dataset=data, callbacks=[callback])
    trainer.train()


def callback(*arguments, **options):
    from nni_gconv.callbacks.huggingface import PruningCallback

    return PruningCallback(*arguments, **options)


@pytest.mark.parametrize(
    ("method", "options", "accumulate"),
    [("fpgm", {"schedule": "cubic"}, 1), ("slimming", {"strength": 1e-2}, 2)],
)
def test_the_model_is_small_when_train_returns(tmp_path, method, options, accumulate):
    net, made = Net(), callback(method, {"macs": 0.5}, X, **options)
    train(tmp_path, net, made, gradient_accumulation_steps=accumulate)
    assert made.pruner.clock.step == EPOCHS * STEPS // accumulate
    assert made.pruner.clock.epoch == EPOCHS
    assert net.net[0].out_channels + net.net[3].out_channels < 24
    assert net(torch.zeros(2, 1, 8, 8))["logits"].shape == (2, 4)
    assert "masked and small model differ by" in str(made.report)


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(ConfigError, match="x= is needed"):
        train(tmp_path, Net(), callback("fpgm", {"macs": 0.5}))
    made = callback("fpgm", {"macs": 0.5}, X)
    with pytest.raises(ConfigError, match="has trained a model already"):
        for _ in range(2):
            train(tmp_path, Net(), made)
