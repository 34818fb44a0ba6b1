"""Partitions within partitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.partition import NestedPartition, arrange, nested_counts
from nni_gconv.groupconv.partition.nested import split_costs

NEAR_DIAGONAL = np.array(
    [[10, 1, 0.2, 0.1], [1, 10, 0.1, 0.2], [0.2, 0.1, 10, 1], [0.1, 0.2, 1, 10]]
)
QUARTERS = (1, 2, 4)


def in_order(filters, channels):
    return NestedPartition.in_order(filters, channels, nested_counts(np.gcd(filters, channels)))


class TestHierarchy:
    @pytest.mark.parametrize(
        ("common", "counts"),
        [(1, (1,)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 12)), (30, (1, 2, 6, 30)), (7, (1, 7))],
    )
    def test_counts_split_by_the_smallest_primes_first(self, common, counts):
        assert nested_counts(common) == counts

    def test_costs_of_squares_and_others(self):
        half = [0, 0.5, 1, 1], [0.5, 0, 1, 1], [1, 1, 0, 0.5], [1, 1, 0.5, 0]
        assert in_order(4, 4).costs().tolist() == list(map(list, half))
        assert in_order(8, 4).costs().tolist() == [list(half[i // 2]) for i in range(8)]
        top = np.kron(np.eye(2) == 0, np.ones((3, 2)))
        assert np.array_equal(in_order(6, 4).costs(), top)
        assert not in_order(3, 4).costs().any()
        assert in_order(8, 8).costs().sum() == 42

    def test_an_odd_factor_is_one_more_split(self):
        assert split_costs((1, 2, 6))[0].tolist() == [0, 0.5, 0.5, 1, 1, 1]

    def test_depth_counts_the_first_splits_alone(self):
        nested = in_order(4, 4)
        assert np.array_equal(nested.costs(depth=1), np.kron(np.eye(2) == 0, np.ones((2, 2))))
        assert not nested.costs(depth=0).any()
        assert np.array_equal(nested.costs(decay=0.3, depth=2), nested.costs(decay=0.3))

    def test_the_mask_is_in_the_order_of_the_layer(self):
        nested = NestedPartition(QUARTERS, np.array([3, 2, 1, 0]), np.arange(4))
        orders = nested.orders()
        assert [o.tolist() for o in orders] == [[3, 2, 1, 0], [0, 1, 2, 3]]
        mask = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
        assert nested.mask(2).astype(int).tolist() == mask
        assert np.array_equal(nested.mask(4)[np.ix_(*orders)], np.eye(4))

    @pytest.mark.parametrize(
        ("scores", "kept"),
        [
            (NEAR_DIAGONAL, (1, 0.973451, 0.884956)),
            (np.eye(8), (1, 1, 1, 1)),
            (np.kron(np.eye(2), np.ones((4, 4))), (1, 1, 0.5, 0.25)),
            (np.ones((8, 8)), (1, 0.5, 0.25, 0.125)),
            (np.zeros((4, 4)), (1, 0, 0)),
            (np.zeros((3, 4)), (1,)),
        ],
    )
    def test_shares_kept(self, scores, kept):
        assert in_order(*scores.shape).kept(scores) == pytest.approx(kept, abs=5e-7)


class TestArrange:
    @pytest.mark.slow
    def test_every_scrambling_is_undone(self):
        """Coordinate descent from the order as it is undoes 192 of these 576."""
        orders = [list(order) for order in itertools.permutations(range(4))]
        scrambled = [NEAR_DIAGONAL[rows][:, cols] for rows in orders for cols in orders]
        found = arrange(scrambled, [QUARTERS] * len(scrambled))
        assert len(found) == 576
        for nested, scores in zip(found, scrambled, strict=True):
            assert nested.cost(scores) == pytest.approx(3.2)
            assert nested.kept(scores) == pytest.approx((1, 0.973451, 0.884956), abs=5e-7)

    def test_the_known_trap_and_the_way_out(self):
        scores = NEAR_DIAGONAL[[2, 0, 3, 1]][:, [1, 3, 0, 2]]
        begin = in_order(4, 4)
        assert begin.cost(scores) == pytest.approx(42.8)
        stuck = arrange([scores], [QUARTERS], start=[begin])[0]
        assert stuck.cost(scores) == pytest.approx(4.8)
        assert stuck.kept(scores)[1] == pytest.approx(0.902655, abs=5e-7)
        assert arrange([scores], [QUARTERS])[0].cost(scores) == pytest.approx(3.2)

    @pytest.mark.parametrize("seed", range(10))
    def test_against_every_order(self, seed):
        scores = np.random.default_rng(seed).random((4, 4))
        every = [np.array(order) for order in itertools.permutations(range(4))]
        least = min(NestedPartition(QUARTERS, r, c).cost(scores) for r in every for c in every)
        assert arrange([scores], [QUARTERS])[0].cost(scores) == pytest.approx(least, rel=0.02)

    @pytest.mark.parametrize(("filters", "channels"), [(16, 16), (12, 18), (64, 32)])
    def test_hidden_blocks_are_found(self, filters, channels):
        rng = np.random.default_rng(1)
        counts = nested_counts(int(np.gcd(filters, channels)))
        hidden = NestedPartition(
            counts,
            *(rng.permutation(np.repeat(range(counts[-1]), n // counts[-1]))
              for n in (filters, channels)),
        )  # fmt: skip
        scores = 1 - hidden.costs() + 0.05 * rng.random((filters, channels))
        found = arrange([scores], [counts])[0]
        for count in counts:
            assert np.array_equal(found.mask(count), hidden.mask(count))

    def test_a_start_is_never_made_worse_and_groups_stay_equal(self):
        rng = np.random.default_rng(2)
        scores = [rng.random((24, 36)), rng.random((36, 24))]
        start = arrange(scores, [nested_counts(12)] * 2, ["a", "b"], ["i", "a"])
        moved = [s + 0.5 * rng.random(s.shape) for s in scores]
        found = arrange(moved, [nested_counts(12)] * 2, ["a", "b"], ["i", "a"], start=start)

        def cost(parts):
            return sum(p.cost(s) / s.sum() for p, s in zip(parts, moved, strict=True))

        assert cost(found) < cost(start)
        assert set(np.bincount(found[0].row_groups)) == {2}
        assert set(np.bincount(found[1].row_groups)) == {3}
        assert np.array_equal(found[0].row_groups, found[1].col_groups)
        again = arrange(moved, [nested_counts(12)] * 2, ["a", "b"], ["i", "a"], start=found)
        assert cost(again) == pytest.approx(cost(found), rel=1e-12)

    def test_what_is_in_order_stays_in_order(self):
        found = arrange([np.ones((8, 4)), np.zeros((4, 4))], [QUARTERS] * 2)
        assert found[0].row_groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert found[1].col_groups.tolist() == [0, 1, 2, 3]

    def test_layers_of_other_depths_share_one_order(self):
        """One side in 8 and in 12 blocks: one order of the channels serves both."""
        rng = np.random.default_rng(3)
        scores = [rng.random((24, 16)), rng.random((24, 36))]
        counts = [nested_counts(8), nested_counts(12)]
        first, second = arrange(scores, counts, ["s", "s"], ["i", "j"])
        for a, b in ((2, 2), (4, 4), (8, 4), (8, 12)):
            rows, others = first.at(a)[0], second.at(b)[0]
            order = np.lexsort((others, rows))
            for groups in (rows[order], others[order]):
                assert (np.diff(groups) >= 0).all()
        warm = arrange(scores, counts, ["s", "s"], ["i", "j"], start=[first, second])
        for before, after, matrix in zip((first, second), warm, scores, strict=True):
            assert after.cost(matrix) == pytest.approx(before.cost(matrix), rel=1e-12)

    def test_the_same_every_time(self):
        scores = [np.random.default_rng(4).random((32, 48))]
        first, second = (arrange(scores, [nested_counts(16)])[0] for _ in range(2))
        assert np.array_equal(first.row_groups, second.row_groups)
        assert np.array_equal(first.col_groups, second.col_groups)

    def test_mistakes(self):
        with pytest.raises(ConfigError, match=r"counts\[0\]: \(1, 3\) is no chain of divisors"):
            arrange([np.ones((4, 4))], [(1, 3)])
        with pytest.raises(ConfigError, match=r"counts\[1\]: \(2, 4\) is no chain"):
            arrange([np.ones((4, 4))] * 2, [(1, 2), (2, 4)])
        with pytest.raises(ConfigError, match=r"scores\[0\]: 'a' names both sides"):
            arrange([np.ones((4, 4))], [(1, 2)], ["a"], ["a"])
