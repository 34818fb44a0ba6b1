"""The refit of one layer against independent few-line solutions."""

import pytest
import torch

from nni_gconv.pruning.reconstruction.least_squares import Alike, Moments, refit


def problem(filters=6, columns=8, places=200, groups=1, seed=0):
    torch.manual_seed(seed)
    p = torch.randn(groups, places, columns, dtype=torch.float64) + 0.5
    weight = torch.randn(filters, columns, dtype=torch.float64)
    said = torch.randn(places, filters, dtype=torch.float64)
    sums = Moments.empty(filters, columns, groups)
    sums.add(p, said)
    return p, weight, said, sums


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_each_filter_solves_its_own_ridge_regression(centred, ridge):
    p, weight, said, sums = problem()
    kept = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) < 0.6
    found = refit(weight, *sums.means(centred=centred), kept, ridge)
    x, y = p[0], said
    if centred:
        x, y = x - x.mean(0), y - y.mean(0)
    strength = ridge * x.square().mean()
    for row in range(6):
        s = kept[row].nonzero()[:, 0]
        # Stacked rows: the places, and one a weight that draws it towards what it was.
        a = torch.cat([x[:, s] / len(x) ** 0.5, torch.eye(len(s)).double() * strength**0.5])
        b = torch.cat([y[:, row] / len(x) ** 0.5, weight[row, s] * strength**0.5])
        assert torch.allclose(found[row, s], torch.linalg.lstsq(a, b[:, None]).solution[:, 0])
        assert not found[row, ~kept[row]].any()


def test_groups_are_layers_of_their_own():
    p, weight, said, sums = problem(groups=2)
    kept = torch.ones(6, 8, dtype=torch.bool)
    found = refit(weight, *sums.means(centred=True), kept, 0.01)
    for group in range(2):
        own = slice(3 * group, 3 * group + 3)
        alone = Moments.empty(3, 8, 1)
        alone.add(p[group : group + 1], said[:, own])
        part = refit(weight[own], *alone.means(centred=True), kept[own], 0.01)
        assert torch.allclose(found[own], part)


@pytest.mark.parametrize("centred", [False, True])
def test_the_error_is_that_of_the_places(centred):
    p, weight, said, sums = problem()
    missing = said - p[0] @ weight.T
    if centred:
        assert torch.allclose(sums.constant(weight), missing.mean(0))
        missing = missing - missing.mean(0)
    expected = missing.square().mean(0).sum()
    assert sums.error(weight, centred=centred) == pytest.approx(float(expected))


@pytest.mark.parametrize("shift", [1.0, -1e-3])
def test_a_matrix_that_is_not_positive_is_solved_all_the_same(shift):
    p, *_ = problem()
    matrix = p[0].T @ p[0] - (1 - shift) * torch.linalg.eigvalsh(p[0].T @ p[0])[0] * torch.eye(8)
    right = torch.randn(8, 3, dtype=torch.float64)
    positive = bool((torch.linalg.eigvalsh(matrix) > 0).all())
    assert positive == (shift > 0)
    every = torch.arange(8)
    solve = Alike(every, every, matrix, 0.0, matrix).solver(0.0)
    assert torch.allclose(matrix @ solve(right), right)


def test_columns_of_zeros_and_singular_moments_are_left_as_they_are():
    p = torch.randn(1, 50, 4, dtype=torch.float64)
    p[..., 1] = 0
    p[..., 3] = p[..., 2]  # only their sum can be known
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    sums = Moments.empty(1, 4, 1)
    sums.add(p, p[0] @ weight.T)
    found = refit(weight, *sums.means(centred=False), torch.ones(1, 4, dtype=torch.bool), 1e-3)
    assert torch.allclose(found, weight)


def test_sums_of_parts_are_sums_of_the_whole():
    p, weight, said, sums = problem()
    first, second = Moments.empty(6, 8, 1), Moments.empty(6, 8, 1)
    first.add(p[:, :70], said[:70])
    second.add(p[:, 70:], said[70:])
    both = first + second
    assert both.count == sums.count
    assert both.error(weight, centred=True) == pytest.approx(sums.error(weight, centred=True))
