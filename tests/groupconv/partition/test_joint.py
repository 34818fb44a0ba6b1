"""Layers that share sides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.partition import Partition, fixed_pattern, partition, partition_joint
from nni_gconv.groupconv.partition.assignment import retained_mass


def balanced(size, groups):
    """Every balanced split of a side."""
    return [
        np.array(p)
        for p in set(itertools.permutations(np.repeat(range(groups), size // groups).tolist()))
    ]


def best_of_all(first, second):
    """Largest sum of retained fractions of two layers, the second reading what the first writes."""
    most = 0.0
    for middle in balanced(len(first), 2):
        into = max(retained_mass(first, middle, c) for c in balanced(first.shape[1], 2))
        out = max(retained_mass(second, r, middle) for r in balanced(len(second), 2))
        most = max(most, into / first.sum() + out / second.sum())
    return most


def fractions(parts):
    return sum(p.fraction for p in parts)


@pytest.mark.parametrize("seed", range(8))
def test_two_in_a_row_against_every_choice(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random((6, 4)), rng.random((4, 6)) * 100
    parts = partition_joint([first, second], ["mid", "out"], ["in", "mid"], 2)
    assert fractions(parts) == pytest.approx(best_of_all(first, second), rel=1e-9)


def same_split(first, second):
    return len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(set(first.tolist()))


@pytest.mark.slow
def test_shared_sides_are_split_alike_and_the_rest_is_free():
    rng = np.random.default_rng(0)
    scores = [rng.random(s) for s in ((16, 32), (16, 16), (32, 16), (32, 8))]
    parts = partition_joint(scores, ["a", "b", "s", "s"], ["i", "a", "b", "j"], 4)
    assert same_split(parts[0].row_groups, parts[1].col_groups)
    assert same_split(parts[1].row_groups, parts[2].col_groups)
    assert same_split(parts[2].row_groups, parts[3].row_groups)
    for part, matrix in zip(parts, scores, strict=True):
        assert part.retained == pytest.approx(retained_mass(matrix, part.row_groups,
                                                            part.col_groups))  # fmt: skip
        assert part.retained <= part.bound * (1 + 1e-12)
        assert set(np.bincount(part.row_groups)) == {len(matrix) // 4}


def test_hidden_blocks_that_fit_together_are_found():
    rng = np.random.default_rng(1)
    hidden = {k: rng.permutation(np.repeat(range(8), n // 8)) for k, n in
              {"i": 64, "a": 32, "b": 32, "s": 64}.items()}  # fmt: skip
    edges = [("a", "i"), ("b", "a"), ("s", "b")]
    blocks = [hidden[r][:, None] == hidden[c][None, :] for r, c in edges]
    scores = [block + 0.2 * rng.random(block.shape) for block in blocks]
    parts = partition_joint(scores, [r for r, _ in edges], [c for _, c in edges], 8)
    for part, (row, column) in zip(parts, edges, strict=True):
        assert same_split(part.row_groups, hidden[row])
        assert same_split(part.col_groups, hidden[column])


def test_a_layer_alone_is_split_as_partition_does():
    rng = np.random.default_rng(2)
    scores = [rng.random((16, 8)), rng.random((12, 12))]
    parts = partition_joint(scores, ["a", "b"], ["c", "d"], 4)
    for matrix, part in zip(scores, parts, strict=True):
        alone = partition(matrix, 4)
        assert part.retained == alone.retained
        assert part.mask().tolist() == alone.mask().tolist()


@pytest.mark.slow
def test_annealing_never_retains_less_and_a_seed_repeats():
    rng = np.random.default_rng(3)
    scores = [rng.random((32, 32)) for _ in range(3)]
    rows, columns = ["a", "b", "c"], ["i", "a", "b"]
    plain = partition_joint(scores, rows, columns, 4, restarts=0)
    best = partition_joint(scores, rows, columns, 4, seed=7)
    again = partition_joint(scores, rows, columns, 4, seed=7)
    assert fractions(best) >= fractions(plain)
    assert [p.row_groups.tolist() for p in best] == [p.row_groups.tolist() for p in again]


@pytest.mark.slow
def test_equal_blocks_are_split_together_as_each_is_alone():
    """In one batch where shapes and sharing are the same; the second block shares otherwise."""
    rng = np.random.default_rng(4)
    shapes = [(8, 16), (8, 8), (16, 8)]
    sharing = [(("a", "b", "c"), ("i", "a", "b")), (("a", "b", "c"), ("c", "a", "b"))]
    blocks = []
    for number, (rows, columns) in enumerate([sharing[0], sharing[1], sharing[0]]):
        scores = [rng.random(shape) ** 3 for shape in shapes]
        names = [[f"{number}{side}" for side in sides] for sides in (rows, columns)]
        blocks.append((scores, *names))
    # Not one block after the other: the first layers of all, the second, the third.
    mixed: tuple[list, list, list] = ([], [], [])
    for layer, block in itertools.product(range(len(shapes)), blocks):
        for whole, part in zip(mixed, block, strict=True):
            whole.append(part[layer])
    together = partition_joint(*mixed, 4, restarts=2)
    for number, block in enumerate(blocks):
        for layer, alone in enumerate(partition_joint(*block, 4, restarts=2)):
            found = together[layer * len(blocks) + number]
            assert np.array_equal(found.row_groups, alone.row_groups)
            assert np.array_equal(found.col_groups, alone.col_groups)
            assert found.bound == alone.bound


def test_a_layer_without_score_is_split_all_the_same():
    parts = partition_joint([np.zeros((4, 4)), np.ones((4, 4))], ["a", "b"], ["i", "a"], 2)
    assert [p.fraction for p in parts] == [1.0, 0.5]


def test_mistakes():
    ones = np.ones((4, 4))
    with pytest.raises(ConfigError, match=r"scores\[0\]: 'a' names both sides"):
        partition_joint([ones], ["a"], ["a"], 2)
    with pytest.raises(ConfigError, match=r"scores\[1\]: side 'a' has 8 channels, elsewhere 4"):
        partition_joint([ones, np.ones((8, 4))], ["a", "a"], ["i", "j"], 2)


@pytest.mark.parametrize("pattern", ["shuffle", "random"])
def test_fixed_patterns_are_balanced(pattern):
    part = fixed_pattern(12, 18, 6, pattern, seed=1)
    assert isinstance(part, Partition)
    assert np.bincount(part.row_groups).tolist() == [2] * 6
    assert np.bincount(part.col_groups).tolist() == [3] * 6
    assert fixed_pattern(12, 18, 6, pattern, seed=1).mask().tolist() == part.mask().tolist()


def test_random_patterns_differ_by_seed():
    first, second = (fixed_pattern(16, 16, 4, "random", seed).mask() for seed in (0, 1))
    assert (first != second).any()
