"""Arguments, errors, the result's views, bounds and scores."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from partition_cases import G1, best_by_brute_force, kernels, planted

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.partition import (
    Partition,
    kernel_norms,
    l1,
    l2,
    partition,
    partition_many,
    taylor,
    upper_bound,
)
from nni_gconv.groupconv.partition.bounds import dual_bound, row_bound, spectral_bound


@pytest.mark.parametrize("method", ["assignment", "grps", "same", "sort"])
@pytest.mark.parametrize(
    ("shape", "groups"), [((64, 48), 32), ((64, 3), 2), ((6, 8), 4), ((4, 4), 3)]
)
def test_groups_divide_both(method, shape, groups):
    with pytest.raises(ValueError, match=rf"num_groups: {groups} .*{shape[0]} rows.*{shape[1]} c"):
        partition(np.ones(shape), groups, method=method)


def test_every_common_divisor_is_accepted():
    for groups in (1, 2, 4, 8, 16):
        assert partition(kernels(0, 64, 48), groups, restarts=0).num_groups == groups


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, -0.5]], r"scores\[0, 1\].*not negative"),
        ([[1.0], [float("nan")]], r"scores\[1, 0\]"),
        ([[float("inf"), 1.0]], r"scores\[0, 0\]"),
        ([1.0, 2.0], "shape"),
        (np.ones((2, 2, 3)), "shape"),
        (np.ones((0, 2)), "shape"),
        ([["a", "b"]], "numbers"),
        (np.ones((2, 2), np.complex128), "complex"),
        (torch.ones(2, 2, dtype=torch.complex64), "complex"),
        (torch.eye(2).to_sparse(), "not a matrix of numbers"),
        (torch.empty(2, 2, device="meta"), "not a matrix of numbers"),
        (np.full((2, 2), 1e308), "overflows"),
    ],
)
def test_wrong_scores(scores, message):
    with pytest.raises(ConfigError, match=message) as caught:
        partition(scores, 1)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 0}, "num_groups: an integer of at least 1"),
        ({"num_groups": 2.0}, "num_groups"),
        ({"num_groups": True}, "num_groups"),
        ({"num_groups": 2, "method": "gprs"}, "did you mean 'grps'"),
        ({"num_groups": 2, "num_sort_iters": -1}, "num_sort_iters"),
        ({"num_groups": 2, "restarts": -1}, "restarts"),
        ({"num_groups": 2, "sweeps": 0}, "sweeps"),
        ({"num_groups": 2, "seed": -1}, "seed"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        partition(G1, **options)


def test_many_layers_name_the_wrong_one():
    with pytest.raises(ConfigError, match=r"scores\[1\]: num_groups: 2 does not divide"):
        partition_many([np.ones((4, 4)), np.ones((4, 3))], 2)
    with pytest.raises(ConfigError, match="3 counts for 2"):
        partition_many([G1, G1], [1, 2, 4])
    with pytest.raises(ConfigError, match="workers"):
        partition_many([G1], 2, workers=0)
    assert partition_many([], 2) == []
    assert [p.num_groups for p in partition_many([G1, G1], [2, 4])] == [2, 4]


def test_tensors_and_lists_are_arrays():
    tensor = torch.tensor(G1, requires_grad=True)
    expected = partition(G1, 2)
    for scores in (tensor, tensor.bfloat16(), G1.tolist(), G1.astype(np.float32)):
        p = partition(scores, 2)
        assert np.array_equal(p.row_groups, expected.row_groups)
        assert p.retained == 60.5


def test_the_callers_scores_are_left_alone():
    scores = kernels(0, 24, 24)
    before = scores.copy()
    partition(scores, 4, sweeps=5)
    assert np.array_equal(scores, before)


def test_lost_mass_of_g1():
    p = partition(G1, 2)
    assert p.total == 72.5
    assert p.lost == 12.0
    assert p.lost / p.total == pytest.approx(0.165517, abs=1e-6)
    assert p.fraction == pytest.approx(1 - 0.165517, abs=1e-6)


def test_export_order_of_g4():
    p = Partition([1, 0, 1, 0], [0, 1, 0, 1], retained=0.0)
    mask = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert p.mask().astype(int).tolist() == mask
    assert p.in_index.tolist() == [0, 2, 1, 3]
    assert p.out_index.tolist() == [2, 0, 3, 1]
    weight = 10.0 * np.arange(4)[:, None] + np.arange(4)
    rows = np.argsort(p.out_index)
    blocks = weight[rows].reshape(2, 2, 4)
    blocks = np.stack([blocks[g][:, p.in_index[2 * g : 2 * g + 2]] for g in range(2)])
    assert blocks.reshape(4, 2).tolist() == [[10, 12], [30, 32], [1, 3], [21, 23]]
    x = np.array([1.0, 2, 3, 4])
    grouped = np.einsum("gof,gf->go", blocks, x[p.in_index].reshape(2, 2)).ravel()
    assert grouped.tolist() == [46, 126, 14, 134]
    assert grouped[p.out_index].tolist() == [14, 46, 134, 126]
    assert np.allclose(grouped[p.out_index], (weight * p.mask()) @ x)


def test_the_mask_found_from_its_own_block_pattern():
    truth = Partition([1, 0, 1, 0], [0, 1, 0, 1], retained=0.0)
    p = partition(truth.mask(), 2)
    assert np.array_equal(p.row_groups, truth.row_groups)
    assert np.array_equal(p.col_groups, truth.col_groups)


def test_groups_are_numbered_by_smallest_column():
    for method in ("assignment", "grps", "same", "sort"):
        p = partition(kernels(4, 24, 40), 8, method=method, sweeps=20)
        first = [int(np.flatnonzero(p.col_groups == g)[0]) for g in range(8)]
        assert first == sorted(first)


def test_the_result_cannot_be_changed():
    p = partition(G1, 2)
    with pytest.raises(ValueError, match="read-only"):
        p.row_groups[0] = 1
    with pytest.raises(AttributeError):
        p.retained = 0.0


@pytest.mark.parametrize(("rows", "cols", "groups"), [(4, 4, 2), (6, 6, 3), (4, 8, 2), (6, 4, 2)])
def test_each_bound_holds_on_brute_force(rows, cols, groups):
    for seed in range(6):
        scores = kernels(seed, rows, cols, 1)
        optimum = best_by_brute_force(scores, groups)
        bounds = {
            "rows": row_bound(scores, groups),
            "columns": row_bound(scores.T, groups),
            "spectrum": spectral_bound(scores, groups)[0],
            "dual": dual_bound(scores, groups, 0.9 * optimum, 30),
            "all": upper_bound(scores, groups, 0.0),
        }
        assert all(bound >= optimum for bound in bounds.values()), bounds
        assert bounds["all"] <= min(bounds.values())


def test_dual_steps_tighten_the_spectral_bound():
    scores = kernels(0, 64, 64)
    known = partition(scores, 4, sweeps=100).retained
    closed = upper_bound(scores, 4, known, steps=0)
    tightened = upper_bound(scores, 4, known, steps=60)
    assert known < tightened < 0.99 * closed


def test_the_spectral_slope_is_its_derivative():
    scores, direction = kernels(0, 12, 20), kernels(1, 12, 20)
    _, slope = spectral_bound(scores, 4)
    step = 1e-5
    up, down = (spectral_bound(scores + s * direction, 4)[0] for s in (step, -step))
    assert (slope * direction).sum() == pytest.approx((up - down) / (2 * step), rel=1e-4)


def test_bound_of_planted_blocks_is_their_mass():
    scores = planted(0, 32, 4)
    assert upper_bound(scores, 4, 0.0) == pytest.approx(scores.sum(), rel=1e-9)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 3), (4, 6, 2, 3, 2)])
@pytest.mark.parametrize("p", [1, 2, 3, float("inf")])
def test_kernel_norms_of_any_rank(shape, p):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.vector_norm(weight.reshape(4, 6, -1), ord=p, dim=-1)
    ours = kernel_norms(weight, p)
    assert torch.allclose(ours, expected, rtol=1e-12)
    assert np.allclose(kernel_norms(weight.numpy(), p), expected.numpy(), rtol=1e-12)


def test_criteria():
    weight = torch.tensor([[[[3.0, -4.0]], [[0.0, 0.0]]]], requires_grad=True)
    (weight**2).sum().backward()
    assert l1(weight).tolist() == [[7.0, 0.0]]
    assert l2(weight).tolist() == [[5.0, 0.0]]
    assert taylor(weight, weight.grad).tolist() == [[50.0, 0.0]]
    assert not l2(weight).requires_grad
    with pytest.raises(ConfigError, match="backward"):
        taylor(weight, None)
    with pytest.raises(ConfigError, match="do not match"):
        taylor(weight, torch.ones(2, 2, 1, 1))


def test_criteria_of_half_precision_and_extremes():
    assert l2(torch.full((1, 1, 3, 3), 60000.0).half()).item() == pytest.approx(180000, rel=1e-3)
    assert l2(np.full((1, 1, 4), 1e-30, np.float32)).item() == pytest.approx(2e-30, rel=1e-6)
    assert l1(np.array([[[-3, 4]]])).tolist() == [[7.0]]
    with pytest.raises(ConfigError, match="filters and channels"):
        l1(torch.ones(3))
    with pytest.raises(ConfigError, match="order"):
        kernel_norms(torch.ones(3, 3), 0)


@pytest.mark.slow
def test_needs_neither_torch_nor_nni():
    code = (
        "import sys, nni_gconv.groupconv.partition as p; p.partition([[1, 0], [0, 1]], 2); "
        "sys.exit(bool({'torch', 'nni'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_without_bounds_the_partition_is_the_same():
    scores = [kernels(seed, 32, 16) for seed in range(3)]
    for restarts in (0, 1):
        plain = partition_many(scores, 4, restarts=restarts)
        quick = partition_many(scores, 4, restarts=restarts, bounds=False)
        for with_bound, without in zip(plain, quick, strict=True):
            assert np.array_equal(with_bound.row_groups, without.row_groups)
            assert np.array_equal(with_bound.col_groups, without.col_groups)
            assert np.isfinite(with_bound.bound)
            assert np.isfinite(without.bound) == (restarts > 0)
