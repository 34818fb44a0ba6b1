"""The pruner on readers of every kind: of channels that say the same one of each pair goes."""

import pytest
import torch
from torch import nn

from nni_gconv import SecondOrderPruner


class Net(nn.Module):
    def __init__(self, reader, *, flat=False, beside=0):
        super().__init__()
        self.first, self.reader = nn.Conv2d(3, 8, 3, padding=1), reader
        self.beside = nn.Conv2d(3, beside, 3, padding=1) if beside else None
        self.flat = nn.Flatten() if flat else nn.Identity()
        with torch.no_grad():
            self.first.weight[4:] = self.first.weight[:4]
            self.first.bias[4:] = self.first.bias[:4]

    def forward(self, x):
        y = self.first(x).relu()
        if self.beside is not None:
            y = torch.cat([self.beside(x), y], 1)
        return self.reader(self.flat(y))


READERS = {
    "convolution": lambda: Net(nn.Conv2d(8, 5, 3, stride=2, dilation=2)),
    "flatten": lambda: Net(nn.Linear(8 * 36, 5), flat=True),
    "transposed": lambda: Net(nn.ConvTranspose2d(8, 5, 3, stride=2)),
    "concat": lambda: Net(nn.Conv2d(11, 5, 3), beside=3),
}


@pytest.mark.parametrize("kind", READERS)
def test_one_of_each_pair_goes(kind):
    torch.manual_seed(0)
    net, x = READERS[kind]().eval(), torch.randn(400, 3, 6, 6)
    config = [{"op_names": ["first"], "sparse_ratio": 0.5}]
    pruner = SecondOrderPruner(net, config, calibration=x, dummy_input=x[:1])
    kept = pruner.compress()[1]["first"]["bias"].bool()
    assert bool((kept[:4] ^ kept[4:]).all())
