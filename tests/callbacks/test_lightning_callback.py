"""Our callback in a trainer of Lightning itself; runs where nni-gconv[lightning] is."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nni_gconv import FPGMPruner
from nni_gconv.errors import ConfigError

pl = pytest.importorskip("pytorch_lightning")

STEPS, EPOCHS = 4, 3


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def images():
    pixels = torch.randn(16 * STEPS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(pixels, torch.arange(16 * STEPS) % 4), 16)


def trainer(folder, *callbacks, **options):
    given = {"max_epochs": EPOCHS, **options}
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), callbacks=list(callbacks),
        **given,
    )  # fmt: skip


def callback(*arguments, **options):
    from nni_gconv.callbacks.lightning import PruningCallback

    return PruningCallback(*arguments, **options)


def by_hand(kind, options):
    """The same training in a plain loop."""
    net = Net()
    optimizer = net.configure_optimizers()
    config = [{"op_names": ["net.0", "net.3", "net.8"]}]
    pruner = kind(net, config, budget={"macs": 0.5}, dummy_input=net.example_input_array, **options)
    with pruner.training(optimizer, epochs=EPOCHS, steps_per_epoch=STEPS):
        for _ in range(EPOCHS):
            for batch in images():
                optimizer.zero_grad()
                net.training_step(batch, 0).backward()
                optimizer.step()
    return pruner.get_masks()


@pytest.mark.parametrize(
    ("method", "options"),
    [("fpgm", {"schedule": "cubic"}), ("slimming", {"strength": 1e-2}), ("gsparsity", {})],
)
def test_the_module_is_small_when_fit_returns(tmp_path, method, options):
    net, made = Net(), callback(method, {"macs": 0.5}, **options)
    trainer(tmp_path, made).fit(net, images())
    assert made.pruner.clock.step == EPOCHS * STEPS
    assert made.pruner.clock.epoch == EPOCHS
    assert net.net[0].out_channels + net.net[3].out_channels < 24
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert "masked and small model differ by" in str(made.report)


def test_masks_are_those_of_a_plain_loop(tmp_path):
    made = callback("fpgm", {"macs": 0.5}, schedule="cubic", speedup=False)
    trainer(tmp_path, made).fit(Net(), images())
    expected = by_hand(FPGMPruner, {"schedule": "cubic"})
    for name, targets in expected.items():
        for target, mask in targets.items():
            assert mask is made.masks[name][target] is None or torch.equal(
                made.masks[name][target], mask
            )


def test_accumulated_steps_are_steps(tmp_path):
    made = callback("slimming", {"macs": 0.5})
    trainer(tmp_path, made, accumulate_grad_batches=2).fit(Net(), images())
    assert made.pruner.clock.step == EPOCHS * STEPS // 2


def test_what_cannot_be_is_said(tmp_path):
    net = Net()
    net.example_input_array = None
    with pytest.raises(ConfigError, match="x= is needed"):
        trainer(tmp_path, callback("fpgm", {"macs": 0.5})).fit(net, images())
    with pytest.raises(ConfigError, match="give the trainer max_epochs="):
        trainer(tmp_path, callback("fpgm", {"macs": 0.5}), max_epochs=-1).fit(Net(), images())
    with pytest.raises(ConfigError, match="did you mean 'fpgm'"):
        trainer(tmp_path, callback("fpmg", {"macs": 0.5})).fit(Net(), images())


def test_an_error_in_the_training_leaves_the_module_whole(tmp_path):
    class Broken(Net):
        def training_step(self, batch, number):
            if number == 2:
                raise RuntimeError("broken")
            return super().training_step(batch, number)

    net = Broken()
    before = copy.deepcopy(list(net.state_dict()))
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, callback("slimming", {"macs": 0.5})).fit(net, images())
    assert list(net.state_dict()) == before
    assert not any(hasattr(module, "_nni_wrapper") for module in net.modules())
