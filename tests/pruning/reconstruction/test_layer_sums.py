"""Sums of what is alive: the same refit as with everything, whenever a channel wakes up."""

import copy
import math

import pytest
import torch
from torch import nn

from nni_gconv import reconstruct
from nni_gconv.errors import ConfigError
from nni_gconv.graph import Replay, state_of, trace
from nni_gconv.pruning import ReconstructSettings
from nni_gconv.pruning.reconstruction import layer_sums
from nni_gconv.pruning.reconstruction.layer_sums import LayerSums
from nni_gconv.pruning.reconstruction.layers import find_layers
from nni_gconv.pruning.reconstruction.least_squares import Moments, refit
from nni_gconv.pruning.reconstruction.walk import Walk, masked_state


def net(*, relu=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1)]
    return nn.Sequential(*layers, *[nn.ReLU()] * relu).eval()


def masks(dense):
    kept = {name: torch.ones_like(t, dtype=torch.bool) for name, t in dense.items()}
    for name in ("0.weight", "0.bias"):
        kept[name][[1, 4]] = False
    kept["2.weight"][3] = kept["2.bias"][3] = False
    kept["2.weight"][0, 2] = False  # a filter with a mask of its own
    return kept


def patches(x):
    return torch.nn.functional.unfold(x, 3, padding=1).movedim(1, 2).flatten(0, 1).double()


def test_what_is_alive_is_refitted_as_all_of_it_would_be():
    model = net()
    dense = state_of(model)
    kept = masks(dense)
    x = torch.randn(12, 3, 8, 8)
    found = Walk(trace(model, x), [x], ridges=[0.05]).refit(dense, kept)
    # The second layer by hand, on what it reads behind the first as that was refitted.
    read = torch.nn.functional.conv2d(x, found["0.weight"], found["0.bias"], padding=1).relu()
    said = model(x).detach().movedim(1, -1).flatten(0, 2).double()
    sums = Moments.empty(5, 54, 1)
    sums.add(patches(read)[None].float(), said.float())
    masked = (dense["2.weight"] * kept["2.weight"]).flatten(1).double()
    alive = kept["2.weight"].flatten(1)
    expected = refit(masked, *sums.means(centred=True), alive, 0.05)
    assert torch.allclose(found["2.weight"].flatten(1).double(), expected, atol=1e-4)
    constant = sums.constant(expected) * alive.any(1)
    assert torch.allclose(found["2.bias"].double(), constant, atol=1e-4)
    assert not found["2.weight"][3].any()
    assert not found["2.bias"][3].any()
    assert not found["2.weight"][0, 2].any()


@pytest.mark.parametrize("relu", [False, True])
def test_a_channel_that_wakes_in_a_later_batch_is_taken_in(relu):
    """Zero throughout the first batch: the sums end as if it had been there from the start."""
    model = net(relu=relu)
    dense = state_of(model)
    kept = masks(dense)
    pruned = masked_state(dense, kept)
    asleep = torch.rand(8, 3, 8, 8)
    with torch.no_grad():
        for state in (dense, pruned):
            state["0.weight"][5].abs_()
            state["0.bias"][5] = 0
    batches = [-asleep, torch.randn(8, 3, 8, 8)]

    def sums(order):
        graph = trace(model, asleep)
        layer = find_layers(graph)[0][1]
        weight = pruned["2.weight"].flatten(1).double()
        found = LayerSums(layer, weight, kept["2.weight"].flatten(1), len(order))
        for batch in order:
            at = {layer.node: lambda v: found.add((v[0], v[1]), torch.Generator())}
            Replay(graph).run([dense, pruned], [batch], at)
        return found

    late, early = sums(batches), sums(batches[::-1])
    assert late._channels.tolist() == early._channels.tolist() == [0, 2, 3, 5]
    first, second = late.fitted([1e-3]), early.fitted([1e-3])
    assert torch.allclose(late._halves[0].moments.read, early._halves[0].moments.read)
    assert torch.allclose(first.weight, second.weight, atol=1e-4)
    assert torch.allclose(first.constant, second.constant, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_places_of_small_batches_are_summed_up_together(relu, monkeypatch):
    """As many products as places need, whatever the batches; and the same sums."""
    model = net(relu=relu)
    dense, x = state_of(model), torch.randn(160, 3, 8, 8)
    kept = masks(dense)
    pruned = masked_state(dense, kept)
    counts, add = [], Moments.add

    def counted(self, read, said):
        counts.append(len(said))
        add(self, read, said)

    monkeypatch.setattr(Moments, "add", counted)

    def fitted(size):
        batches = x.split(size)
        graph = trace(model, batches[0])
        layer = find_layers(graph)[0][1]
        weight = pruned["2.weight"].flatten(1).double()
        found = LayerSums(layer, weight, kept["2.weight"].flatten(1), len(batches))
        at = {layer.node: lambda v: found.add((v[0], v[1]), torch.Generator())}
        for batch in batches:
            Replay(graph).run([dense, pruned], [batch], at)
        return found.fitted([1e-3])

    several, together = fitted(2), fitted(160)
    # 5,120 places of each half: what waits for more is summed up before it is more than 4,096.
    assert counts == [4096, 4096, 1024, 1024] * 2
    assert torch.allclose(several.weight, together.weight, atol=1e-4)
    assert torch.allclose(several.constant, together.constant, atol=1e-4)


def test_a_layer_that_reads_nothing_but_zeros_is_left_alone():
    model = net()
    dense = state_of(model)
    kept = {name: torch.ones_like(t, dtype=torch.bool) for name, t in dense.items()}
    for name in ("0.weight", "0.bias"):
        kept[name][:] = False
    x = torch.randn(4, 3, 8, 8)
    found = Walk(trace(model, x), [x]).refit(dense, kept)
    assert torch.equal(found["2.weight"], dense["2.weight"])
    said = model(x).mean((0, 2, 3))
    assert torch.allclose(found["2.bias"], said, atol=1e-5)  # right on average


def test_so_many_places_as_are_asked_for_each_column(monkeypatch):
    """The rule for narrow layers is left out: 32 and 64 places for each of a batch's 36 columns."""
    model = net()
    x, given = torch.randn(64, 3, 8, 8), []
    given_masks = {"0": {"weight": torch.ones(6, 3, 3, 3), "bias": torch.ones(6)}}
    given_masks["0"]["weight"][[1, 4]] = given_masks["0"]["bias"][[1, 4]] = 0
    monkeypatch.setattr(layer_sums, "places_for", lambda columns, each: each * columns)
    add = Moments.add

    def counted(self, read, said):
        if read.shape[2] == 36:
            given.append(len(said))
        add(self, read, said)

    monkeypatch.setattr(Moments, "add", counted)
    seen = {}
    for places in (32, 64):
        given.clear()
        settings = ReconstructSettings(places=places)
        reconstruct(copy.deepcopy(model), given_masks, x, settings=settings)
        seen[places] = sum(given)
    # All; before, a quick fit by an eighth of them, of half of the images: as many of each of 32.
    assert seen == {n: 36 * n + 32 * math.ceil(36 * n / 8 / 32) for n in (32, 64)}


def test_fewer_than_two_places_for_each_column_are_refused():
    with pytest.raises(ConfigError, match=r"\.places: 1 is not allowed \(a whole number from 2\)"):
        ReconstructSettings.parse({"places": 1})
