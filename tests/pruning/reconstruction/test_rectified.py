"""The refit in front of a ReLU against an independent descent on the error it stands for."""

from functools import partial
from itertools import islice

import pytest
import torch
from pruning_nets import randomised
from torch import nn

from nni_gconv.graph import Replay, state_of, trace
from nni_gconv.pruning.reconstruction.layers import find_layers
from nni_gconv.pruning.reconstruction.least_squares import Fitted, Moments, Problem, refit
from nni_gconv.pruning.reconstruction.rectified import (
    RectifiedPlaces,
    last_that_helps,
    rectified_steps,
)


def problem(groups=1, filters=4, columns=6, places=300, seed=0, slope=None):
    torch.manual_seed(seed)
    read = torch.randn(groups, places, columns, dtype=torch.float64) + 0.3
    said = torch.randn(places, filters, dtype=torch.float64)
    slope = torch.tensor([1.0, 2.0, -0.5, 0.0]).double() if slope is None else slope
    # Some other summand stands between the layer and its ReLU.
    before = said * slope + 0.2 + 0.5 * torch.randn(places, filters, dtype=torch.float64)
    kept = torch.rand(filters, columns) < 0.7
    masked = torch.randn(filters, columns, dtype=torch.float64) * kept
    sums = Moments.empty(filters, columns, groups)
    sums.add(read, said)
    held = RectifiedPlaces(slope)
    for some in torch.arange(places).split(70):
        held.add(read[:, some], said[some], before[some])
    return read, said, before, slope, kept, masked, sums, held


def outputs(read, weight):
    each = weight.chunk(len(read))
    return torch.cat([p @ w.T for p, w in zip(read, each, strict=True)], 1)


def behind(read, said, before, slope, weight, constant):
    """E |u - z|^2 where z > 0, E |max(u, 0)|^2 elsewhere: a filter each."""
    value = before + (outputs(read, weight) + constant - said) * slope
    missing = torch.where(before > 0, value - before, value.relu())
    return missing.square().mean(0)


def start(sums, masked, kept, ridge, centred):
    flat = refit(masked, *sums.means(centred=centred), kept, ridge)
    constant = sums.constant(flat) * kept.any(1)
    return Fitted(flat, constant if centred else torch.zeros_like(constant))


def stepping(first, sums, masked, kept, held, *, ridge, centred):
    posed = Problem.of(masked, kept, sums, centred=centred)
    solve = posed.solver(ridge)
    fitted = posed.fitted(solve)
    assert torch.equal(fitted.weight, first.weight)
    assert torch.equal(fitted.constant, first.constant)
    return rectified_steps(first, posed, solve, held)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_error_is_that_of_the_places(groups):
    read, said, before, slope, _, masked, _, held = problem(groups)
    constant = torch.randn(4).double()
    expected = behind(read, said, before, slope, masked, constant).sum()
    assert held.error(Fitted(masked, constant)) == pytest.approx(float(expected))
    assert (held + held).error(Fitted(masked, constant)) == pytest.approx(float(expected))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("centred", [True, False])
def test_the_steps_come_to_the_least_error_behind_the_relu(centred, groups):
    read, said, before, slope, kept, masked, sums, held = problem(groups)
    first = start(sums, masked, kept, 0.0, centred)
    steps = stepping(first, sums, masked, kept, held, centred=centred, ridge=0.0)
    last = next(islice(steps, 200, None))
    assert not last.weight[~kept].any()

    free = [masked.clone().requires_grad_(), torch.zeros(4).double().requires_grad_()]
    search = torch.optim.LBFGS(
        free, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss():
        search.zero_grad()
        constant = free[1] * centred
        total = behind(read, said, before, slope, free[0] * kept, constant).sum()
        total.backward()
        return total

    search.step(loss)
    least = behind(read, said, before, slope, free[0] * kept, free[1] * centred).detach()
    found = behind(read, said, before, slope, last.weight, last.constant)
    assert torch.allclose(found, least, rtol=1e-4)
    at_first = behind(read, said, before, slope, first.weight, first.constant)
    live = slope != 0
    assert (found[live] < 0.999 * at_first[live]).all()


def test_a_channel_that_its_norm_scales_to_nothing_is_fitted_as_without_a_relu():
    *_, kept, masked, sums, held = problem()
    first = start(sums, masked, kept, 0.01, True)
    steps = stepping(first, sums, masked, kept, held, centred=True, ridge=0.01)
    last = next(islice(steps, 20, None))
    assert torch.allclose(last.weight[3], first.weight[3])
    assert not torch.allclose(last.weight[0], first.weight[0])


def test_one_step_is_the_least_squares_for_the_targets_moved():
    read, said, before, slope, kept, masked, sums, held = problem()
    first = start(sums, masked, kept, 0.0, True)
    found = next(stepping(first, sums, masked, kept, held, centred=True, ridge=0.0))
    value = before + (outputs(read, first.weight) + first.constant - said) * slope
    aim = torch.where(before > 0, before, value.clamp(max=0))
    for row in range(3):  # the last has no slope
        target = said[:, row] + (aim - before)[:, row] / slope[row]
        s = kept[row].nonzero()[:, 0]
        known = torch.cat([read[0][:, s], torch.ones(len(said), 1).double()], 1)
        weights = torch.linalg.lstsq(known, target[:, None]).solution[:, 0]
        assert torch.allclose(found.weight[row, s], weights[:-1])
        assert torch.allclose(found.constant[row], weights[-1])


class Sum(nn.Module):
    """One layer of each kind: alone, with a norm, in a sum, in front of no ReLU."""

    def __init__(self):
        super().__init__()
        self.alone, self.normed = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.summed, self.last = nn.Conv2d(4, 4, 1, bias=False), nn.Linear(4, 5)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.seen = None  # what stands before each ReLU; not while it is traced

    def relu(self, name, x):
        if self.seen is not None:
            self.seen[name] = x.detach()
        return torch.relu(x)

    def forward(self, x):
        x = self.relu("alone", self.alone(x))
        x = self.relu("normed", self.norm(self.normed(x)))
        x = self.relu("summed", x + self.other(self.summed(x)))
        return self.last(x.mean((2, 3)))


def every_place(y):
    return y.movedim(1, -1).flatten(0, -2)


def test_what_comes_before_a_relu_is_what_the_dense_network_has_there():
    model, x = randomised(Sum()).eval(), torch.randn(5, 3, 6, 6)
    graph = trace(model, x)
    layers, _ = find_layers(graph)
    state, found = state_of(model), {}

    def look(layer, values):
        slope = layer.slope(tuple(values))
        _, before = layer.wanted(tuple(values), every_place, None if slope is None else 1)
        if before is not None:
            _, second = layer.wanted(tuple(values), every_place, 2)
            assert torch.equal(second, before[::2])
        found[layer.weight.removesuffix(".weight")] = before, slope

    at = {layer.node: partial(look, layer) for layer in layers}
    Replay(graph).run([state, state], [x], at)
    model.seen = {}
    model(x)
    assert found.pop("last") == (None, None)
    assert list(found) == ["alone", "normed", "summed"]
    for name, (before, slope) in found.items():
        assert torch.allclose(before, every_place(model.seen[name]), atol=1e-5)
        norm = {"normed": model.norm, "summed": model.other}.get(name)
        expected = torch.ones(4) if norm is None else norm.weight / (norm.running_var + 1e-5).sqrt()
        assert torch.allclose(slope, expected)


def test_steps_end_where_the_error_does_not_fall_and_the_rest_is_not_asked_for():
    asked = []

    def steps(*values):
        for value in values:
            asked.append(value)
            yield value

    inf, nan = float("inf"), float("nan")
    assert last_that_helps(steps(3.0, 2.5, 2.5, 1.0), float) == 2.5
    assert asked == [3.0, 2.5, 2.5]
    assert last_that_helps([2.0, nan, 1.0], float) == 2.0
    assert last_that_helps([inf, 1.0, nan], float) == 1.0
    assert last_that_helps([inf, nan], float) == inf
    assert last_that_helps([nan, 1.0, 2.0], float) == 1.0
    assert last_that_helps([3.0, 2.0, 1.0], float) == 1.0
