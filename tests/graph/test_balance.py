"""Channels tied or balanced by where they stand (groups, shuffles, chunks), against brute force.

A set of filters can go when the network of the same code with as many filters fewer, its readers
cut in order, runs and gives the same numbers. All subsets of filters are tried.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from speedup_nets import Small, conv
from speedup_tools import randn, randomise
from torch import nn

from nni_gconv import FPGMPruner, ModelSpeedup
from nni_gconv.graph import Coupling

X = randn(2, 3, 8, 8)


def shuffled(x, parts=2):
    n, c, h, w = x.shape
    return x.view(n, parts, c // parts, h, w).transpose(1, 2).reshape(n, c, h, w)


def swapped(x):
    first, second = x.split(x.shape[1] // 2, 1)
    return torch.cat([F.relu(second), first], 1)


def largest(x):
    n, c, h, w = x.shape
    return x.view(n, c // 2, 2, h, w).amax(2)


class Arranged:
    """A network by the number of filters of `a` (and `c`), and how to cut it by hand."""

    def __init__(self, move, sources, a=conv, b=conv, norm=None, second=0, exact=True):
        self.move, self.a, self.b, self.norm, self.second = move, a, b, norm, second
        #: False where more is possible than is offered: other pairs than those of equal place.
        self.exact = exact
        #: Rows of `a`, then of `c`, that stand at each position that `b` reads.
        self.sources = sources

    def build(self, rows):
        wide = rows - self.second
        parts = {"a": self.a(6, wide), "b": self.b(len(self.sources(rows)), 4)}
        if self.norm:
            parts["norm"] = self.norm(rows)
        if self.second:
            parts["c"] = conv(6, self.second)

        def forward(s, x):
            x = torch.cat([x, x**2], 1)
            y = torch.cat([s.a(x), s.c(x)], 1) if self.second else s.a(x)
            return s.b(self.move(s.norm(y) if self.norm else y))

        return Small(forward, **parts)

    def cut(self, net, rows, keep):
        """Return what the small network gives, or None when its code does not allow it."""
        first = [r for r in keep if r < rows - self.second]
        second = [r - len(net.a.bias) for r in keep if r >= rows - self.second]
        other = copy.copy(self)
        other.second = len(second)
        positions = [
            i for i, row in enumerate(self.sources(rows)) if set(np.atleast_1d(row)) <= set(keep)
        ]
        try:
            small = other.build(len(keep)).double().eval()
            with torch.no_grad():
                copy_rows(net.a, small.a, first)
                if self.second:
                    copy_rows(net.c, small.c, second)
                if self.norm:
                    small.norm.weight.copy_(net.norm.weight[keep])
                    small.norm.bias.copy_(net.norm.bias[keep])
                copy_columns(net.b, small.b, positions)
                return small(X)
        except (ValueError, RuntimeError, ZeroDivisionError):
            return None


def copy_rows(dense, small, keep):
    """Copy filters; those of a transposed convolution stand in the group they are in."""
    if isinstance(dense, nn.ConvTranspose2d):
        share, width = dense.weight.shape[1], len(keep) // dense.groups
        inputs = len(dense.weight) // dense.groups
        for position, row in enumerate(keep):
            of, into = row // share, position // width
            if of != into:
                raise ValueError("groups of unequal width")
            block = slice(of * inputs, (of + 1) * inputs)
            small.weight[block, position % width] = dense.weight[block, row % share]
    else:
        small.weight.copy_(dense.weight[keep])
    small.bias.copy_(dense.bias[keep])


def copy_columns(dense, small, keep):
    width, filters = dense.weight.shape[1], len(dense.weight) // dense.groups
    for group in range(dense.groups):
        rows = slice(group * filters, (group + 1) * filters)
        columns = [c - group * width for c in keep if c // width == group]
        small.weight[rows] = dense.weight[rows][:, columns]
    small.bias.copy_(dense.bias)


def moved(move):
    """Find the sources of a pure move by moving the numbers of the rows."""
    return lambda rows: [
        int(i) for i in move(torch.arange(rows, dtype=torch.float64).view(1, -1, 1, 1)).flatten()
    ]


def side_by_side(rows):
    return np.arange(rows).reshape(-1, 2)


def grouped(inside, outside):
    return conv(inside, outside, groups=2)


def transposed(inside, outside):
    return nn.ConvTranspose2d(inside, outside, 1, groups=2)


ARRANGED = {
    "shuffle": Arranged(shuffled, moved(shuffled), exact=False),
    "shuffle operator": Arranged(nn.ChannelShuffle(2), moved(shuffled), exact=False),
    "halves": Arranged(swapped, moved(swapped)),
    "largest": Arranged(largest, side_by_side),
    "gated": Arranged(lambda x: F.glu(x, 1), lambda n: np.arange(n).reshape(2, -1).T),
    "read in groups": Arranged(nn.Identity(), range, b=grouped),
    "shuffled and read in groups": Arranged(shuffled, moved(shuffled), b=grouped, exact=False),
    "group norm": Arranged(F.relu, range, norm=lambda n: nn.GroupNorm(n // 2, n)),
    "transposed in groups": Arranged(F.relu, range, a=transposed, exact=False),
    "two read in groups": Arranged(F.relu, range, b=grouped, second=2, exact=False),
}


def removable_by_cutting(arranged, net, rows):
    """All sets of filters without which the code gives the same; no layer is emptied."""
    found = set()
    layers = [range(rows - arranged.second), range(rows - arranged.second, rows)]
    for size in range(rows):
        for gone in itertools.combinations(range(rows), size):
            keep = [r for r in range(rows) if r not in gone]
            if any(len(rows_of) and not set(rows_of) & set(keep) for rows_of in layers):
                continue
            got = arranged.cut(net, rows, keep)
            if got is None:
                continue
            if torch.allclose(got, zeroed(net, gone)(X), rtol=0, atol=1e-10):
                found.add(frozenset(gone))
    return found


def zeroed(net, gone):
    net = copy.deepcopy(net)
    gone = torch.tensor(gone, dtype=torch.long)
    first = len(net.a.bias)
    with torch.no_grad():
        parts = [(net.a, gone[gone < first])]
        if hasattr(net, "c"):
            parts.append((net.c, gone[gone >= first] - first))
        for layer, rows in parts:
            layer.bias[rows] = 0
            if isinstance(layer, nn.ConvTranspose2d):
                groups = layer.weight.view(layer.groups, -1, *layer.weight.shape[1:])
                for row in rows.tolist():
                    groups[row // layer.weight.shape[1], :, row % layer.weight.shape[1]] = 0
            else:
                layer.weight[rows] = 0
        if hasattr(net, "norm"):
            net.norm.weight[gone] = 0
            net.norm.bias[gone] = 0
    return net


def removable_by_coupling(net):
    """All sets of filters that steps of coupled sets remove."""
    first = len(net.a.bias)
    options = []
    for coupled in Coupling.trace(net, X).sets:
        if coupled.reason is not None:
            continue
        rows = [set() for _ in range(coupled.size)]
        for member in coupled.members:
            share = first // len(net.a.weight[0]) if isinstance(net.a, nn.ConvTranspose2d) else 1
            for row, unit in zip(member.rows.tolist(), member.units.tolist(), strict=True):
                offset = first if member.module == "c" else 0
                rows[unit] |= {row + offset + group * (first // share) for group in range(share)}
        units = range(coupled.size)
        blocks = np.zeros(coupled.size, int) if coupled.parts is None else coupled.parts
        width = blocks.max() + 1 if coupled.parts is not None else 0
        options.append([
            frozenset().union(*(rows[u] for u in some))
            for size in range(coupled.size)
            for some in itertools.combinations(units, size)
            if not width or len({(blocks[list(some)] == b).sum() for b in range(width)}) == 1
        ])  # fmt: skip
    return {frozenset().union(*choice) for choice in itertools.product(*options)}


@pytest.mark.parametrize("name", ARRANGED)
def test_arrangements_equal_brute_force(name):
    arranged, rows = ARRANGED[name], 8
    net = randomise(arranged.build(rows))
    cut, offered = removable_by_cutting(arranged, net, rows), removable_by_coupling(net)
    assert {frozenset()} < offered <= cut
    assert (offered == cut) == arranged.exact


def test_two_groupings_cross():
    net = randomise(Small(
        lambda s, x: s.d(s.b(y := s.a(x)) + s.c(y)),
        a=conv(3, 12), b=conv(12, 4, groups=2), c=conv(12, 4, groups=4), d=conv(4, 2),
    ))  # fmt: skip
    coupled = Coupling.trace(net, X).sets[0]
    assert coupled.reason is None
    assert np.bincount(coupled.parts).tolist() == [3, 3, 3, 3]
    uneven = randomise(Small(
        lambda s, x: s.d(s.b(y := s.a(x)) + s.c(y)),
        a=conv(3, 12), b=conv(12, 6, groups=2), c=conv(12, 6, groups=3), d=conv(6, 2),
    ))  # fmt: skip
    # Of 4, 2, 2 and 4 channels that lie in the same two groups half goes, or nothing.
    first, second, _ = Coupling.trace(uneven, X).sets
    rows, units = first.members[0].rows, first.members[0].units
    assert (first.size, rows[units == 0].tolist()) == (2, [0, 1, 4, 6, 8, 9])
    assert second.reason == "groups of b would not stay equally wide"


def test_channels_cut_at_random_by_many_layers():
    """Nothing smaller than nearly all keeps every balance; that is said and not searched for."""

    class Crossed(nn.Module):
        def __init__(self, width, readers):
            super().__init__()
            self.a, self.readers = (
                conv(3, width),
                nn.ModuleList(conv(width, 8, 1, groups=4) for _ in range(readers)),
            )
            orders = torch.stack([torch.randperm(width) for _ in range(readers)])
            for index, order in enumerate(orders):
                self.register_buffer(f"order{index}", order)

        def forward(self, x):
            x = self.a(x)
            parts = [
                layer(x.index_select(1, getattr(self, f"order{index}")))
                for index, layer in enumerate(self.readers)
            ]
            return torch.stack(parts)

    torch.manual_seed(0)
    first = Coupling.trace(randomise(Crossed(160, 8)), X).sets[0]
    assert first.reason == "groups of readers.0 would not stay equally wide"
    several = Coupling.trace(randomise(Crossed(16, 2)), X).sets
    assert [s.reason for s in several if s.members[0].module == "a"] == [None]


class Mixed(nn.Module):
    """A shuffle between groups, halves that go different ways, groups that are normalised."""

    def __init__(self):
        super().__init__()
        self.a, self.shuffle = conv(3, 16, groups=1), nn.ChannelShuffle(2)
        self.b, self.norm = conv(16, 16, groups=2), nn.GroupNorm(4, 16)
        self.c, self.head = conv(8, 8), conv(24, 4)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.norm(self.b(self.shuffle(self.act(self.a(x))))))
        first, second = x.chunk(2, 1)
        return self.head(torch.cat([first, second, self.act(self.c(second))], 1))


@pytest.mark.parametrize("budget", [0.7, 0.4])
def test_what_a_pruner_is_offered_can_go(budget):
    net, dummy = Mixed(), torch.zeros(1, 3, 8, 8)
    pruner = FPGMPruner(
        net, [{"op_types": ["Conv2d"]}], dummy_input=dummy, budget={"params": budget}
    )
    _, masks = pruner.compress()
    pruner.unwrap_model()
    dense = sum(p.numel() for p in net.parameters())
    speedup = ModelSpeedup(net, dummy, masks)
    small = speedup.speedup_model()
    assert not speedup.report().notes
    assert sum(p.numel() for p in small.parameters()) <= budget * dense
    assert small.norm.num_channels == 4 * small.norm.num_groups == (16 if budget > 0.5 else 8)
