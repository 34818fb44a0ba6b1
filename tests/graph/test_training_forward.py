"""What only training runs: auxiliary heads are cut along, or said to be left."""

import torch
import torch.nn.functional as F
from speedup_nets import X, conv, shapes
from speedup_tools import (
    assert_same_outputs,
    line_of,
    masked,
    outputs_of,
    randomise,
    rows_off,
    shrink,
)
from torch import nn


class WithAuxiliaryHead(nn.Module):
    """Evaluation does not call the head that training reads the middle with."""

    def __init__(self, flatten=lambda x: x.flatten(1), width=5):
        super().__init__()
        self.a, self.bn, self.b, self.fc = (
            conv(3, 8),
            nn.BatchNorm2d(8),
            conv(8, 6),
            nn.Linear(6, 4),
        )
        self.aux = nn.Sequential(conv(8, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout())
        self.aux_fc = nn.Linear(4 * width, 4)
        self.never = nn.Linear(3, 3)
        self.flatten = flatten

    def forward(self, x):
        x = F.relu(self.bn(self.a(x)))
        if self.training:
            aux = self.aux_fc(self.flatten(F.adaptive_avg_pool2d(self.aux(x), 2)))
        x = self.fc(F.relu(self.b(x)).mean((2, 3)))
        return (x, aux) if self.training else x


def test_auxiliary_head_is_cut_along():
    net = randomise(WithAuxiliaryHead())
    masks = {**rows_off(net, "a", [1, 2], "bn"), **rows_off(net, "aux.0", [3], "aux.1")}
    reference = masked(net, masks).train()
    speedup = shrink(net, X, masks)
    assert shapes(net, "a", "b", "aux.0", "aux_fc") == [(6, 3), (6, 6), (4, 6), (4, 16)]
    notes = speedup.report().notes
    assert "never: not used by the forward, left as they are" in notes
    for model in (reference, net):
        model.train().aux[3].eval()  # dropout draws as many numbers as there are channels
    assert_same_outputs(outputs_of(reference, X), outputs_of(net, X))


def test_channels_that_only_training_reads():
    """The head reads what evaluation does not need; zeros alone let it go."""
    net = randomise(WithAuxiliaryHead())
    unread = torch.ones_like(net.b.weight)
    unread[:, [3, 4]] = 0
    shrink(net, X, {"b": {"weight": unread}}, smaller=False)
    assert net.a.out_channels == 8


def test_literal_width_that_only_training_meets():
    net = randomise(WithAuxiliaryHead(lambda x: x.reshape(-1, 5 * 2 * 2)))
    masks = {**rows_off(net, "a", [1], "bn"), **rows_off(net, "aux.0", [3], "aux.1")}
    shrink(net, X, masks)
    assert shapes(net, "a", "aux.0", "aux_fc") == [(7, 3), (5, 7), (4, 20)]
    assert [len(y) for y in net.train()(X)] == [2, 2]


def test_halves_that_only_training_cuts():
    net = randomise(WithAuxiliaryHead(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1).flatten(1), 6))
    masks = rows_off(net, "aux.0", [1, 4, 5], "aux.1")
    reference = masked(net, masks).train()
    speedup = shrink(net, X, masks)
    assert shapes(net, "aux.0", "aux_fc") == [(4, 8), (4, 16)]
    assert "equal parts of chunk" in " ".join(speedup.report().notes)
    for model in (reference, net):
        model.train().aux[3].eval()
    assert_same_outputs(outputs_of(reference, X), outputs_of(net, X))


def test_training_that_cannot_be_traced_is_said():
    class Drawing(WithAuxiliaryHead):
        def forward(self, x):
            if self.training and x.sum() > 0:
                x = -x
            return super().forward(x)

    net = randomise(Drawing())
    speedup = shrink(net, X, rows_off(net, "a", [1, 2], "bn"))
    (note,) = [n for n in speedup.report().notes if "not used in evaluation" in n]
    assert note.startswith("aux.0, aux.1, aux_fc and 1 more")
    assert line_of(Drawing, "if self.training and") in note
    assert "may no longer fit" in note
