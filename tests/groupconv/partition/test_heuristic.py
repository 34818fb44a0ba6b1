"""GRPS and block matching against the values worked out for the paper's method."""

import numpy as np
import pytest
from partition_cases import G1, G2, G2B, G3, G6, kernels

from nni_gconv.groupconv.partition import partition
from nni_gconv.groupconv.partition.grps import grps_permutations, match_blocks, sort_permutations


def kept(scores, groups, method, iters=10):
    return partition(scores, groups, method=method, num_sort_iters=iters).retained


def literal_grps(scores, groups, iters):
    """The pseudo-code line by line, whole matrices and all repetitions."""
    rows, cols = scores.shape
    a, b = rows // groups, cols // groups
    po, pi = np.arange(rows), np.arange(cols)
    for g in range(groups - 1, -1, -1):
        hr, hc = a * (g + 1), b * (g + 1)
        for _ in range(iters):
            t = scores[po][:, pi][:hr, :hc]
            pc = np.argsort(t[a * g : hr].sum(0), kind="stable")
            pr = np.argsort(t[:, pc][:, -b:].sum(1), kind="stable")
            pi[:hc], po[:hr] = pi[:hc][pc], po[:hr][pr]
    return po, pi


@pytest.mark.parametrize(
    ("scores", "groups", "same", "sort", "grps"),
    [
        (G1, 2, 36.5, 60.5, {1: 60.5, 2: 60.5, 10: 60.5}),
        (G2, 2, 48.60, 48.60, {10: 49.60}),
        (G2B, 2, None, None, {1: 47.60, 10: 50.60}),
        (G3, 4, 44.1, 82.5, {1: 84.1, 2: 84.1, 10: 84.1}),
        (G6, 2, 53.248, 50.248, {1: 66.248, 10: 85.248}),
    ],
    ids=["G1", "G2", "G2b", "G3", "G6"],
)
def test_published_vectors(scores, groups, same, sort, grps):
    if same is not None:
        assert kept(scores, groups, "same") == pytest.approx(same)
        assert kept(scores, groups, "sort") == pytest.approx(sort)
    for iters, value in grps.items():
        assert kept(scores, groups, "grps", iters) == pytest.approx(value)


def test_raw_permutations_of_g1():
    rows, cols = grps_permutations(G1, 2, 10)
    assert rows.tolist() == cols.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("iters", [0, 1, 2, 10, 100])
@pytest.mark.parametrize(("rows", "cols", "groups"), [(12, 24, 3), (64, 32, 8), (16, 16, 16)])
def test_equals_the_pseudo_code(rows, cols, groups, iters):
    for seed in range(3):
        scores = np.round(kernels(seed, rows, cols), 1)  # rounded: many ties
        scores = scores * 8 // 1  # integers: sums are exact in any order
        ours, theirs = grps_permutations(scores, groups, iters), literal_grps(scores, groups, iters)
        assert np.array_equal(ours[0], theirs[0])
        assert np.array_equal(ours[1], theirs[1])


@pytest.mark.parametrize(("rows", "cols", "groups"), [(24, 48, 3), (64, 64, 8)])
def test_the_whole_method_on_scores_without_ties(rows, cols, groups):
    """Sorting, matching of blocks and numbering, as the paper describes them."""
    from scipy.optimize import linear_sum_assignment

    a, b = rows // groups, cols // groups
    for seed in range(5):
        scores = kernels(seed, rows, cols)
        po, pi = literal_grps(scores, groups, 10)
        ordered = scores[np.ix_(po, pi)]
        blocks = [
            [ordered[u : u + a, v : v + b].sum() for v in range(0, cols, b)]
            for u in range(0, rows, a)
        ]
        _, match = linear_sum_assignment(-np.array(blocks))
        pairs = [(po[u * a : (u + 1) * a], pi[v * b : (v + 1) * b]) for u, v in enumerate(match)]
        pairs.sort(key=lambda pair: pair[1].min())
        found = partition(scores, groups, "grps", num_sort_iters=10)
        for group, (mine, channels) in enumerate(pairs):
            assert sorted(mine) == np.flatnonzero(found.row_groups == group).tolist()
            assert sorted(channels) == np.flatnonzero(found.col_groups == group).tolist()
        assert found.retained == pytest.approx(sum(scores[np.ix_(*p)].sum() for p in pairs))


def test_no_sorting_is_matching_alone():
    scores = kernels(0, 16, 16)
    assert kept(scores, 4, "grps", 0) == kept(scores, 4, "same")


def test_matching_maximises_over_blocks():
    scores = np.array([[0, 0, 5, 0], [0, 0, 0, 5], [7, 0, 1, 1], [0, 7, 1, 1.0]])
    rows, cols = match_blocks(scores, np.arange(4), np.arange(4), 2)
    assert rows.tolist() == [0, 0, 1, 1]
    assert cols.tolist() == [1, 1, 0, 0]


def test_sort_is_stable():
    rows, cols = sort_permutations(np.ones((4, 6)))
    assert rows.tolist() == [0, 1, 2, 3]
    assert cols.tolist() == [0, 1, 2, 3, 4, 5]
