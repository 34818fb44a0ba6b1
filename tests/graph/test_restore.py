"""What a forward keeps beyond its call is as before once the model has been traced."""

import copy
import functools
import gc
import sys
import types
from collections import OrderedDict, defaultdict, deque

import pytest
import torch
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.compat import is_fake
from nni_gconv.errors import TraceError
from nni_gconv.graph import Coupling, trace

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GRIDS = {}
GRID = None


def grid(h, w):
    return torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).float()


@functools.lru_cache
def cached_grid(h, w):
    return grid(h, w)


@functools.cache
def cached_pair(h, w):
    return {"grid": [grid(h, w)]}, h


class Slots:
    __slots__ = ("grid",)


class Holder:
    def __init__(self):
        self.grids = {}


def from_dict(grids, h, w):
    if (h, w) not in grids:
        grids[h, w] = grid(h, w)
    return grids[h, w]


def in_list(s, h, w):
    if s.held[0].shape[-2:] != (h, w):
        s.held[0] = grid(h, w)
    return s.held[0]


def in_nested(s, h, w):
    if not s.held["levels"]:
        s.held["levels"].append((grid(h, w),))
    return s.held["levels"][0][0]


def in_deque(s, h, w):
    if not s.held:
        s.held.append(grid(h, w))
    return s.held[-1]


def in_slots(s, h, w):
    if not hasattr(s.held, "grid"):
        s.held.grid = grid(h, w)
    return s.held.grid


def in_attribute(s, h, w):
    if s.held is None:
        s.held = grid(h, w)
    return s.held


def in_class(s, h, w):
    if type(s).shared is None:
        type(s).shared = grid(h, w)
    return type(s).shared


def in_global(s, h, w):
    global GRID  # noqa: PLW0603 - as users write it
    if GRID is None:
        GRID = grid(h, w)
    return GRID


def in_closure():
    kept = None

    def call(s, h, w):
        nonlocal kept
        if kept is None:
            kept = grid(h, w)
        return kept

    return call


PLACES = {
    "list": (in_list, lambda: [torch.empty(0)]),
    "dict": (lambda s, h, w: from_dict(s.held, h, w), dict),
    "ordered dict": (lambda s, h, w: from_dict(s.held, h, w), OrderedDict),
    "defaultdict": (lambda s, h, w: from_dict(s.held, h, w), lambda: defaultdict(list)),
    "nested": (in_nested, lambda: {"levels": []}),
    "deque": (in_deque, lambda: deque(maxlen=2)),
    "object": (lambda s, h, w: from_dict(s.held.grids, h, w), Holder),
    "slots": (in_slots, Slots),
    "attribute": (in_attribute, lambda: None),
    "class": (in_class, lambda: None),
    "dict of the class": (lambda s, h, w: from_dict(s.grids, h, w), lambda: None),
    "global": (in_global, lambda: None),
    "dict of the file": (lambda s, h, w: from_dict(GRIDS, h, w), lambda: None),
    "closure": (None, lambda: None),
    "lru_cache": (lambda s, h, w: cached_grid(h, w), lambda: None),
    "cache of a pair": (lambda s, h, w: cached_pair(h, w)[0]["grid"][0], lambda: None),
}


#: What a function caches is looked for among all objects there are.
MARKED = [pytest.param(p, marks=[pytest.mark.slow] * ("cache" in p)) for p in PLACES]


class Head(nn.Module):
    """A detector's head: what it adds depends on the size of the image alone."""

    shared = None
    grids = {}  # noqa: RUF012 - as users write it

    def __init__(self, place):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        get, make = PLACES[place]
        self.get, self.held = get or in_closure(), make()

    def forward(self, x):
        y = self.b(self.a(x)).sigmoid()
        return torch.cat([y[:, :2] * 2 + self.get(self, *map(int, y.shape[-2:])), y[:, 2:]], 1)


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(Head, "shared", None)
    monkeypatch.setitem(globals(), "GRID", None)
    GRIDS.clear()
    Head.grids.clear()
    cached_grid.cache_clear()
    cached_pair.cache_clear()


def expected_of(net, x):
    """Outputs by formula: no cache has a part in them."""
    y = net.b(net.a(x)).sigmoid()
    return torch.cat([y[:, :2] * 2 + grid(*y.shape[-2:]), y[:, 2:]], 1)


@pytest.fixture
def fakes():
    """Return what lists the fake tensors made since; torch.export leaves some of its own."""

    def alive():
        gc.collect()
        return [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and is_fake(x)]

    before = {id(x): x for x in alive()}
    return lambda: [x for x in alive() if id(x) not in before]


@pytest.mark.parametrize("place", MARKED)
def test_outputs_are_right_after_a_trace(place):
    net = Head(place).eval()
    for _ in range(2):  # the second meets what the first has left
        assert Coupling.trace(net, X).sets
    with torch.no_grad():
        assert torch.equal(net(X), expected_of(net, X))
    trace(net, X)  # what the forward itself has kept by now stays
    with torch.no_grad():
        assert torch.equal(net(X), expected_of(net, X))


@pytest.mark.slow
def test_no_fake_tensor_is_kept_anywhere(fakes):
    nets = {place: Head(place).eval() for place in PLACES}
    for _ in range(2):
        assert all(Coupling.trace(net, X).sets for net in nets.values())
    assert fakes() == []  # looked for once: that takes longer than all the traces


@pytest.mark.parametrize("place", MARKED)
def test_the_small_model_gives_the_right_numbers(place):
    net = Head(place).eval()
    mask, bias = torch.ones(8, 3, 3, 3), torch.ones(8)
    mask[2:5] = bias[2:5] = 0
    masked = copy.deepcopy(net)
    with torch.no_grad():
        masked.a.weight.mul_(mask), masked.a.bias.mul_(bias)
        want = expected_of(masked, X)
    speedup = ModelSpeedup(net, X, {"a": {"weight": mask, "bias": bias}})
    small = speedup.speedup_model()
    with torch.no_grad():
        assert (small(X) - want).abs().max() < 1e-5
    assert small.a.out_channels == 5


@pytest.mark.slow
def test_what_is_kept_elsewhere_is_said(monkeypatch, fakes):
    elsewhere = types.ModuleType("elsewhere")
    elsewhere.CACHE = {}
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)

    class Far(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return y + from_dict(sys.modules["elsewhere"].CACHE, *map(int, y.shape[-2:]))

    message = r"^[^\n]* it has made in elsewhere\.CACHE, outside the model: [^\n]*$"
    with pytest.raises(TraceError, match=message):
        trace(Far(3, 2, 1), X)
    assert elsewhere.CACHE == {}
    assert fakes() == []


def test_containers_are_the_same_objects_with_the_same_contents():
    net = Head("dict").eval()
    net.log, net.sizes, net.held = [1], {3}, {"a": 1}
    held, log, sizes = net.held, net.log, net.sizes

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            self.net.log.append(x.mean())
            self.net.sizes.add(x.shape[-1])
            self.net.held["b"] = x
            self.net.held.pop("a")
            self.calls = 1
            return self.net.b(self.net.a(x))

    outer = Counting().eval()
    trace(outer, X)
    assert (net.held, net.log, net.sizes) == ({"a": 1}, [1], {3})
    assert net.held is held and net.log is log and net.sizes is sizes
    assert not hasattr(outer, "calls")
