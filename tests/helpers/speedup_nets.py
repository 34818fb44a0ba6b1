"""Small networks that tests of the speedup put their patterns into."""

import torch.nn.functional as F
from speedup_tools import randn, randomise
from torch import nn

from nni_gconv.graph import Coupling


def conv(inside, outside, kernel=3, **options):
    options = {"padding": kernel // 2, **options}
    return nn.Conv2d(inside, outside, kernel, **options)


def reasons(model, dummy):
    """Return for each layer why channels of it stay, all reasons in one; None where all can go."""
    found = {}
    for coupled in Coupling.trace(model, dummy).sets:
        for member in coupled.members:
            known = found.setdefault(member.module, coupled.reason)
            if coupled.reason not in (None, known):
                found[member.module] = f"{known or ''}; {coupled.reason}"
    return found


class Net(nn.Module):
    """A stem of 8 channels, what a test puts behind it, and a 1x1 convolution to 4 outputs."""

    def __init__(self, forward=None, width=8, **modules):
        super().__init__()
        self.stem = conv(3, 8)
        for name, module in modules.items():
            setattr(self, name, module)
        self.head = conv(width, 4, 1)
        self._middle = forward

    def forward(self, x):
        return self.head(self._middle(self, F.relu(self.stem(x))))


def middle(forward, width=8, **modules):
    return randomise(Net(forward, width, **modules))


X = randn(2, 3, 8, 8)


def shapes(model, *names):
    """Return (out, in) of the weights of layers."""
    return [tuple(model.get_submodule(n).weight.shape[:2]) for n in names]


class Small(nn.Module):
    """A network of the modules given, with a forward given as a function."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._call = forward

    def forward(self, x):
        return self._call(self, x)
