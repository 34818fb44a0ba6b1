"""Every kind of layer that reads a pruned channel, against least squares in a few lines.

A layer's output is linear in its weight: its columns are what it says with one weight at a time. No
code of patches, moments or ridges is used for what is expected.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nni_gconv.graph import state_of, trace
from nni_gconv.pruning.reconstruction.walk import Walk


class Net(nn.Module):
    """Producers, of which channels go, and the reader that makes up for them."""

    def __init__(self, reader, *, between=None, join=None):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.between, self.join, self.reader = between or nn.Identity(), join, reader

    def forward(self, x):
        y = self.a(x).tanh()
        if self.join == "concat":
            y = torch.cat([y, self.b(x).tanh()], 1)
        elif self.join == "add":
            y = y + self.b(x).tanh()
        return self.reader(self.between(y))


def flat(of):
    return nn.Sequential(nn.AdaptiveAvgPool2d(of), nn.Flatten())


READERS = {
    "1x1": lambda: Net(nn.Conv2d(4, 3, 1)),
    "3x3 padded": lambda: Net(nn.Conv2d(4, 3, 3, padding=1)),
    "reflected": lambda: Net(nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect")),
    "stride": lambda: Net(nn.Conv2d(4, 3, (3, 2), stride=(2, 3))),
    "dilation": lambda: Net(nn.Conv2d(4, 3, 3, dilation=2, padding=2)),
    "same": lambda: Net(nn.Conv2d(4, 3, 2, padding="same")),
    "groups": lambda: Net(nn.Conv2d(4, 6, 3, groups=2)),
    "depthwise": lambda: Net(nn.Conv2d(4, 8, 3, groups=4)),
    "no bias": lambda: Net(nn.Conv2d(4, 3, 3, bias=False)),
    "concat": lambda: Net(nn.Conv2d(8, 3, 3), join="concat"),
    "stream": lambda: Net(nn.Conv2d(4, 3, 3), join="add"),
    "linear behind pooling": lambda: Net(nn.Linear(4, 3), between=flat(1)),
    "linear behind flatten": lambda: Net(nn.Linear(16, 3), between=flat(2)),
    "transposed": lambda: Net(nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)),
    "transposed groups": lambda: Net(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, dilation=2)),
}


def masks(model, dense):
    """Channels 1 of `a` and, under a sum, of `b`; in a concat channel 2 of `b`."""
    kept = {name: torch.ones_like(t, dtype=torch.bool) for name, t in dense.items()}
    for name, channel in {"a": 1, "b": {"add": 1, "concat": 2}.get(model.join, 0)}.items():
        kept[f"{name}.weight"][channel] = kept[f"{name}.bias"][channel] = False
    return kept


def said_with(reader, read, weight, bias=None):
    state = {"weight": weight}
    if reader.bias is not None:
        state["bias"] = torch.zeros_like(reader.bias) if bias is None else bias
    return functional_call(reader, state, (read,)).movedim(1, -1).double()


def least_squares(reader, read, wanted):
    """What the reader says with the best weights, and the best constant if it takes one."""
    columns = []
    for index in range(reader.weight.numel()):
        unit = torch.zeros(reader.weight.numel())
        unit[index] = 1
        columns.append(said_with(reader, read, unit.view_as(reader.weight)).flatten())
    if reader.bias is not None:
        for unit in torch.eye(len(reader.bias)):
            columns.append(said_with(reader, read, torch.zeros_like(reader.weight), unit).flatten())
    matrix = torch.stack(columns, 1)
    # By the normal equations' pseudo-inverse: channels that have gone read zeros.
    best = torch.linalg.pinv(matrix.T @ matrix, rtol=1e-9) @ matrix.T @ wanted.flatten()
    return (matrix @ best).view_as(wanted)


@pytest.mark.parametrize("kind", READERS)
def test_the_reader_says_what_least_squares_says(kind):
    torch.manual_seed(0)
    model = READERS[kind]().eval()
    with torch.no_grad():
        model.a.bias += 0.5  # so that a constant has something to make up for
    x = torch.randn(256, 3, 7, 7)
    dense = state_of(model)
    found = Walk(trace(model, x), [x], ridges=[1e-9]).refit(dense, masks(model, dense))
    seen = []
    hook = model.reader.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        wanted = model(x).movedim(1, -1).double()
        said = functional_call(model, found, (x,)).movedim(1, -1).double()
        masked = {n: t * masks(model, dense)[n] for n, t in dense.items()}
        before = functional_call(model, masked, (x,)).movedim(1, -1).double()
        hook.remove()
        expected = least_squares(model.reader, seen[1], wanted)
    least = (expected - wanted).square().mean()
    assert (said - wanted).square().mean() == pytest.approx(float(least), rel=1e-3, abs=1e-9)
    assert (said - expected).square().mean() < 1e-3 * least + 1e-9
    assert least < 0.9 * (before - wanted).square().mean()
