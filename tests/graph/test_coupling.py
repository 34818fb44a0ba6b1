"""Coupled sets against a definition of their own: which channels can be told apart.

Two filters belong to the same channel when zeroing the one alone can never make it removable:
zero a filter (and what acts on it) in a copy of the network and look, in every value that any
layer reads, at which positions the signal of that filter arrives *before* it is mixed. That is
found by running the network with random weights in which one filter is disturbed, and seeing
which input channels of which layers change. Filters that disturb the same input channel of some
reader are one channel; so are, by transitivity, all that are linked.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from speedup_nets import Small, conv
from speedup_tools import line_of, randn, randomise
from torch import nn

from nni_gconv.graph import Coupling

X = randn(2, 3, 8, 8)
PRODUCERS = (nn.Conv2d, nn.Linear)


def disturbed_inputs(net, name, row):
    """Return {(reader, input position)} that change when one filter does, its own depth only.

    Readers other than depthwise ones stop the signal: they emit what they did before.
    """
    modules = dict(net.named_modules())
    readers = {n: m for n, m in modules.items() if isinstance(m, PRODUCERS)}
    seen, frozen, handles = {}, {}, []

    def watch(n, replay):
        def before(module, args):
            seen[n] = args[0].detach().clone()

        def after(module, args, output):
            if n == name:
                changed = output.clone()
                changed.select(1 if output.dim() > 2 else -1, row).mul_(-1.7).sub_(0.6)
                return changed if replay else output
            if module_is_depthwise(module):
                return output
            if not replay:
                frozen[n] = output
                return output
            return frozen[n]

        handles.append(modules[n].register_forward_pre_hook(before))
        handles.append(modules[n].register_forward_hook(after))

    with torch.no_grad():
        runs = []
        for replay in (False, True):
            for n in readers:
                watch(n, replay)
            net(X)
            runs.append(dict(seen))
            for handle in handles:
                handle.remove()
    found = set()
    for n, first in runs[0].items():
        dim = 1 if first.dim() > 2 else first.dim() - 1
        delta = (first - runs[1][n]).abs().movedim(dim, 0).flatten(1).amax(1)
        found |= {(n, int(i)) for i in torch.nonzero(delta > 1e-9)[:, 0]}
    return found


def module_is_depthwise(module):
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.weight.shape[1] == 1


def by_disturbance(net):
    """Partition all filters of a net by the rule above: {frozenset of (layer, filter)}."""
    filters = [
        (name, row)
        for name, module in net.named_modules()
        if isinstance(module, PRODUCERS)
        for row in range(module.weight.shape[0])
    ]
    reach = {f: disturbed_inputs(net, *f) for f in filters}
    parent = {f: f for f in filters}

    def find(f):
        while parent[f] != f:
            f = parent[f]
        return f

    for first, second in itertools.combinations(filters, 2):
        same_input = reach[first] & reach[second]
        if same_input:
            parent[find(first)] = find(second)
    for f in filters:  # a depthwise filter is one channel with what it reads
        module = net.get_submodule(f[0])
        if module_is_depthwise(module):
            position = f[1] * module.groups // module.out_channels
            for other in filters:
                if (f[0], position) in reach[other]:
                    parent[find(f)] = find(other)
    groups = {}
    for f in filters:
        groups.setdefault(find(f), set()).add(f)
    return {frozenset(g) for g in groups.values()}


def by_coupling(net, tie=()):
    """Partition all filters as the library does."""
    found = set()
    for coupled in Coupling.trace(net, X, tie=tie).sets:
        units = {}
        for member in coupled.members:
            for row, unit in zip(member.rows.tolist(), member.units.tolist(), strict=True):
                units.setdefault(unit, set()).add((member.module, row))
        assert sorted(units) == list(range(coupled.size))
        found |= {frozenset(u) for u in units.values()}
    return found


NETS = {
    "chain": lambda: Small(lambda s, x: s.b(F.relu(s.a(x))), a=conv(3, 5), b=conv(5, 2)),
    "residual": lambda: Small(
        lambda s, x: s.d((y := F.relu(s.a(x))) + s.c(F.relu(s.b(y)))),
        a=conv(3, 4), b=conv(4, 3), c=conv(3, 4), d=conv(4, 2),
    ),
    "concat": lambda: Small(
        lambda s, x: s.c(torch.cat([y := F.relu(s.a(x)), s.b(y)], 1)),
        a=conv(3, 4), b=conv(4, 3), c=conv(7, 2),
    ),
    "concat of a sum": lambda: Small(
        lambda s, x: s.c(torch.cat([s.a(x) + (z := s.b(x)), z], 1)),
        a=conv(3, 4), b=conv(3, 4), c=conv(8, 2),
    ),
    "depthwise": lambda: Small(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
        a=conv(3, 4), b=conv(4, 8, groups=4), c=conv(8, 2),
    ),
    "gate": lambda: Small(
        lambda s, x: s.d(
            (y := s.a(x)) * torch.sigmoid(s.c(F.relu(s.b(y.mean((2, 3))))))[..., None, None]
        ),
        a=conv(3, 4), b=nn.Linear(4, 3), c=nn.Linear(3, 4), d=conv(4, 2),
    ),
    "padded sum": lambda: Small(
        lambda s, x: s.c(s.pad(s.a(x)) + s.b(x)),
        a=conv(3, 4), b=conv(3, 7), c=conv(7, 2), pad=nn.ZeroPad3d((0, 0, 0, 0, 1, 2)),
    ),
    "shifted sums": lambda: Small(
        lambda s, x: s.d(torch.cat([s.a(x), s.b(x)], 1) + s.c(x)),
        a=conv(3, 2), b=conv(3, 3), c=conv(3, 5), d=conv(5, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_sets_equal_brute_force(name):
    net = randomise(NETS[name]())
    expected = by_disturbance(net)
    # The outputs are nobody's input: each of their filters stands alone in both.
    assert by_coupling(net) == expected


def test_brute_force_can_tell():
    """The judge is no rubber stamp: tie two layers that are not tied and it disagrees."""
    net = randomise(NETS["chain"]())
    expected = by_disturbance(net)
    assert len(expected) == 7
    net = randomise(NETS["residual"]())
    assert by_coupling(net, tie=[("a.weight", "d.weight")][:0]) == by_disturbance(net)
    wide = randomise(
        Small(lambda s, x: s.c(s.a(x) * s.b(x).mean((1,), keepdim=True)),
              a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    )  # fmt: skip
    assert by_coupling(wide, tie=[("a.weight", "b.weight")]) != by_coupling(wide)


def test_flatten_groups_positions_of_one_channel():
    net = randomise(
        Small(lambda s, x: s.fc(F.relu(s.a(x)).flatten(1)), a=conv(3, 4), fc=nn.Linear(256, 2))
    )
    coupled = Coupling.trace(net, X).sets[0]
    assert (coupled.name, coupled.size, coupled.reason) == ("a", 4, None)


def test_names_sizes_and_reasons():
    net = randomise(NETS["residual"]())
    sets = Coupling.trace(net, X).sets
    assert [(s.name, s.size, s.reason) for s in sets] == [
        ("a (+1)", 4, None),
        ("b", 3, None),
        ("d", 2, "an output of the model"),
    ]
    assert [m.module for m in sets[0].members] == ["a", "c"]
    assert sets[0].members[0].parameter == "a.weight"


class Pinned(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 8), conv(8, 6), conv(6, 8), conv(4, 2)

    def forward(self, x):
        x = self.a(x)
        x = F.layer_norm(x.movedim(1, -1), (8,)).movedim(-1, 1)
        x = self.c(F.relu(self.b(x)))
        first, second = x[:, :4], x[:, 4:]
        return self.d(first * second)


def test_pinned_reasons_name_the_line():
    found = {s.name: s.reason for s in Coupling.trace(randomise(Pinned()), X).sets}
    assert "normalised over channels" in found["a"]
    assert line_of(Pinned, "F.layer_norm(x.movedim") in found["a"]
    assert found["b"] is None
    assert "a part of the channels taken" in found["c"]
    assert line_of(Pinned, "x[:, :4]") in found["c"]
    assert found["d"] == "an output of the model"


def test_reasons_name_lines_of_torchvision():
    import torchvision

    sets = Coupling.trace(torchvision.models.shufflenet_v2_x0_5(), torch.zeros(1, 3, 32, 32)).sets
    places = [s.reason for s in sets if s.reason and "a part of the channels taken" in s.reason]
    assert places
    assert all("shufflenetv2.py:" in place for place in places)


def test_groups_have_blocks():
    net = randomise(Small(lambda s, x: s.c(s.b(s.a(x))), a=conv(3, 8), b=conv(8, 12, groups=4),
                          c=conv(12, 2)))  # fmt: skip
    first, second, _ = Coupling.trace(net, X).sets
    assert first.parts.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.bincount(second.parts).tolist() == [3, 3, 3, 3]


def test_masks_zero_all_that_acts_on_a_channel():
    net = randomise(nn.Sequential(
        conv(3, 4), nn.BatchNorm2d(4), nn.PReLU(4), conv(4, 4, groups=4), conv(4, 2),
    ))  # fmt: skip
    coupling = Coupling.trace(net, X)
    removed = coupling.empty()
    removed[coupling.sets[0].classes[2]] = True
    masks = coupling.masks(removed)
    zeros = {
        f"{module}.{target}": sorted({int(i) for i in (mask == 0).nonzero()[:, 0]})
        for module, targets in masks.items()
        for target, mask in targets.items()
    }
    assert zeros == {
        **{f"{i}.{t}": [2] for i in (0, 1, 3) for t in ("weight", "bias")},
        "2.weight": [2],
        "4.weight": [],
        "4.bias": [],
    }
    assert all(set(m.unique().tolist()) <= {0.0, 1.0} for t in masks.values() for m in t.values())


def test_masks_of_a_parameter_with_two_axes():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(5, 2)
            self.table = nn.Parameter(torch.rand(4, 5))

        def forward(self, x):
            a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
            return self.head((a[:, :, None] * b[:, None, :] * self.table).amax(1))

    coupling = Coupling.trace(randomise(Table()), randn(2, 3))
    removed = np.ones_like(coupling.empty())
    removed[coupling.channels.of(coupling.channels.axes["table", 0].labels)] = False
    assert coupling.masks(removed)[""]["table"].sum() == 0
    removed = coupling.empty()
    removed[coupling.channels.of(coupling.channels.axes["table", 0].labels[:1])] = True
    removed[coupling.channels.of(coupling.channels.axes["table", 1].labels[:2])] = True
    assert coupling.masks(removed)[""]["table"].sum() == 3 * 3


def test_table_and_guessed_input():
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))
    coupling = Coupling.trace(net)  # no example input: an image of a common size
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(coupling.table())
    text = console.export_text()
    assert "coupled channels" in text
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert [[c.strip() for c in row.strip("│").split("│")] for row in rows] == [
        ["0", "8", "0", "yes"],
        ["1", "4", "2", "an output of the model"],
    ]
    assert net.training
