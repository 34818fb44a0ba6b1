"""Channels picked by a buffer of positions: the buffer follows what is left."""

import pytest
import torch
from speedup_tools import line_of, randn, randomise, rows_off, shrink
from torch import nn

from nni_gconv import ModelSpeedup, load_compact, save_compact
from nni_gconv.graph import Coupling

X = randn(2, 3, 6, 6)


class Picking(nn.Module):
    def __init__(self, index, bracket=False, persistent=True, dim=1):
        super().__init__()
        self.register_buffer("index", torch.tensor(index), persistent=persistent)
        self.bracket, self.dim = bracket, dim

    def forward(self, x):
        return x[:, self.index] if self.bracket else x.index_select(self.dim, self.index)


class Net(nn.Module):
    def __init__(self, pick, width=8, calls=1):
        super().__init__()
        self.a, self.pick, self.calls = nn.Conv2d(3, 8, 3), pick, calls
        self.norm, self.head = nn.BatchNorm2d(width), nn.Conv2d(width, 4, 1)

    def forward(self, x):
        x = torch.relu(self.a(x))
        for _ in range(self.calls):
            x = self.pick(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize("bracket", [True, False])
@pytest.mark.parametrize(
    ("index", "gone", "left"),
    [
        ([3, 1, 0, 2, 7, 6, 5, 4], [0, 5], [2, 0, 1, 5, 4, 3]),
        ([2, 2, 7, 0], [7, 1], [1, 1, 0]),
        ([6, 6, 6], [0, 1, 2], [3, 3, 3]),
    ],
    ids=["order", "some", "one"],
)
def test_positions_follow(index, gone, left, bracket):
    net = randomise(Net(Picking(index, bracket), len(index)))
    rows = [i for i, row in enumerate(index) if row in gone]
    masks = {**rows_off(net, "a", gone), **rows_off(net, "norm", rows)}
    shrink(net, X, masks)
    assert net.a.out_channels == 8 - len(gone)
    assert net.pick.index.tolist() == left
    assert net.norm.num_features == len(left)


def test_a_buffer_under_another_name():
    """CondenseNet wraps its positions in a Variable of their own."""

    class Wrapping(Picking):
        def forward(self, x):
            return x.index_select(1, torch.autograd.Variable(self.index))

    net = randomise(Net(Wrapping([3, 1, 0, 2, 7, 6, 5, 4])))
    masks = {**rows_off(net, "a", [0, 5]), **rows_off(net, "norm", [2, 6])}
    shrink(net, X, masks)
    assert net.pick.index.tolist() == [2, 0, 1, 5, 4, 3]


def test_a_permutation_applied_twice_ties_its_cycles():
    net = randomise(Net(Picking([1, 0, 3, 4, 2, 5, 7, 6]), calls=2))
    first = Coupling.trace(net, X).sets
    assert sorted(s.size for s in first if s.members[0].module == "a") == [1, 1, 2]
    masks = {**rows_off(net, "a", [0, 1, 3]), **rows_off(net, "norm", [0, 1])}
    shrink(net, X, masks)
    assert net.pick.index.tolist() == [1, 2, 0, 3, 5, 4]


def test_positions_are_saved_and_loaded(tmp_path):
    def make():
        return randomise(Net(Picking([3, 1, 0, 2, 7, 6, 5, 4])))

    net = make()
    masks = {**rows_off(net, "a", [0, 5]), **rows_off(net, "norm", [2, 6])}
    small = ModelSpeedup(net, X, masks).speedup_model()
    loaded = load_compact(save_compact(small, tmp_path / "m.safetensors"), make).eval()
    assert torch.equal(loaded(X), small(X))


def test_one_channel_picked_twice_and_moved():
    """Nothing tells any more where it runs: it stays, even if it is masked."""

    class Moved(Picking):
        def forward(self, x):
            return super().forward(x).flatten(2).unflatten(2, x.shape[2:])

    net = randomise(Net(Moved([3, 3]), 2))
    shrink(net, X, {**rows_off(net, "a", [0, 3])})
    assert (net.a.out_channels, net.pick.index.tolist()) == (7, [2, 2])


@pytest.mark.parametrize("kind", ["not persistent", "of space", "computed"])
def test_what_is_not_followed_is_pinned(kind):
    pick = {
        "not persistent": Picking([1, 0, 2, 3, 5, 4, 7, 6], persistent=False),
        "of space": Picking([1, 0], dim=2),
        "computed": Computed(),
    }[kind]
    net = randomise(Net(pick))
    masks = rows_off(net, "a", [0, 1])
    if kind == "of space":
        shrink(net, X, {**masks, **rows_off(net, "norm", [0, 1])})
        assert net.a.out_channels == 6
    else:
        (reason,) = {s.reason for s in Coupling.trace(net, X).sets if s.members[0].module == "a"}
        assert "which mixes channels" in reason
        assert line_of(type(pick), "return x") in reason
        shrink(net, X, masks, smaller=False)


class Computed(nn.Module):
    def forward(self, x):
        return x.index_select(1, torch.arange(7, -1, -1))


def test_groups_with_gathers_are_pruned_again():
    """What group convolutions leave of permutations is no obstacle to a second round."""
    torch.manual_seed(0)
    net = randomise(nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1),
    ))  # fmt: skip
    blocks = torch.zeros(8, 8, 3, 3, dtype=torch.float64)
    blocks[::2, ::2] = blocks[1::2, 1::2] = 1
    masks = {"2": {"weight": blocks}}
    ModelSpeedup(net, X, masks, fold_permutations=False).speedup_model()
    gathers = [n for n, _ in net.named_buffers()]
    assert gathers
    name = next(n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 2)
    # Rows 0 and 4 of the group convolution: one of each group.
    shrink(net, X, {**rows_off(net, "0", [0, 1]), **rows_off(net, name, [0, 4])})
    assert net[0].out_channels == 6
    assert (net.get_submodule(name).in_channels, net.get_submodule(name).out_channels) == (6, 6)
