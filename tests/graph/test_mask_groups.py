"""Groups found in masks."""

from __future__ import annotations

import numpy as np
import pytest

from nni_gconv.graph import find_mask_groups
from nni_gconv.groupconv.partition import Partition


def scrambled(sizes, seed=0, dead_rows=0, dead_columns=0):
    """A block-diagonal matrix of blocks of these sizes, scrambled; and the block of each line."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(len(sizes)), [r for r, _ in sizes])
    columns = np.repeat(np.arange(len(sizes)), [c for _, c in sizes])
    rows = rng.permutation(np.r_[rows, np.full(dead_rows, -1)])
    columns = rng.permutation(np.r_[columns, np.full(dead_columns, -2)])
    return rows[:, None] == columns[None, :], rows, columns


def is_renaming(found, wanted):
    """Whether equal numbers stand in the same places."""
    return len(set(zip(found.tolist(), wanted.tolist(), strict=True))) == len(set(found.tolist()))


@pytest.mark.parametrize(("groups", "rows", "columns"), [(2, 3, 5), (8, 4, 2), (300, 1, 1)])
def test_equal_blocks_are_found(groups, rows, columns):
    matrix, of_row, of_column = scrambled([(rows, columns)] * groups)
    blocks = find_mask_groups(matrix)
    assert blocks.num_groups == groups
    assert is_renaming(blocks.rows, of_row)
    assert is_renaming(blocks.columns, of_column)
    assert not matrix[blocks.rows[:, None] != blocks.columns[None, :]].any()


def test_a_partition_comes_back():
    part = Partition([1, 0, 2, 0, 1, 2], [0, 1, 2, 2, 1, 0], retained=0)
    blocks = find_mask_groups(part.mask())
    assert is_renaming(blocks.rows, part.row_groups)
    assert is_renaming(blocks.columns, part.col_groups)


@pytest.mark.parametrize("matrix", [np.ones((4, 4)), np.zeros((4, 4)), np.triu(np.ones((4, 4)))])
def test_one_component_is_no_group(matrix):
    assert find_mask_groups(matrix.astype(bool)) is None


def test_small_components_are_packed():
    # 2 + 2, 3 + 1: two groups of four; no more, since four groups of two cannot hold three.
    matrix, _, _ = scrambled([(3, 3), (2, 2), (2, 2), (1, 1)])
    blocks = find_mask_groups(matrix)
    assert blocks.num_groups == 2
    assert np.bincount(blocks.rows).tolist() == np.bincount(blocks.columns).tolist() == [4, 4]
    assert not matrix[blocks.rows[:, None] != blocks.columns[None, :]].any()


def test_unequal_components_that_fill_no_groups():
    matrix, _, _ = scrambled([(5, 1), (1, 5)])
    assert find_mask_groups(matrix) is None


def test_dead_lines_fill_groups_up():
    matrix, _, _ = scrambled([(4, 3), (3, 4), (3, 3)], dead_rows=2, dead_columns=2)
    blocks = find_mask_groups(matrix)
    assert np.bincount(blocks.rows).tolist() == np.bincount(blocks.columns).tolist() == [4, 4, 4]


def test_dead_lines_that_no_group_needs_are_loose():
    # 13 filters in three groups: one has to go.
    matrix, of_row, _ = scrambled([(4, 2)] * 3, dead_rows=1)
    blocks = find_mask_groups(matrix)
    assert blocks.num_groups == 3
    assert (blocks.rows == -1).tolist() == (of_row == -1).tolist()
