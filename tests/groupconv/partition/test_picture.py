"""The pixels of a partition."""

from __future__ import annotations

import numpy as np
import pytest

from nni_gconv.groupconv.partition import block_pixels, partition


def blocks(filters, channels, groups, rng):
    scores = np.kron(np.eye(groups), np.ones((filters // groups, channels // groups)))
    return scores[rng.permutation(filters)][:, rng.permutation(channels)]


@pytest.mark.parametrize(("filters", "channels"), [(16, 24), (512, 8), (300, 700)])
def test_groups_lie_on_the_diagonal_of_the_right_half(filters, channels):
    scores = blocks(filters, channels, 4, np.random.default_rng(0))
    image = block_pixels(scores, partition(scores, 4), pixels=64)
    assert image.dtype == np.uint8
    colours, height, width = image.shape
    assert colours == 3
    assert max(height, width) < 64 * 2.5
    half = next(w for w in range(1, width) if 2 * w + max(2, w // 8) == width)
    right = image[:, :, -half:].astype(int)
    bright = right[1] > 200  # of viridis, only the large scores are so green
    inner = np.zeros_like(bright)
    for g in range(4):
        rows = slice(round(g * height / 4) + 2, round((g + 1) * height / 4) - 2)
        columns = slice(round(g * half / 4) + 2, round((g + 1) * half / 4) - 2)
        inner[rows, columns] = True
    if half > 20:
        assert bright[inner].all()
        outside = bright & ~np.kron(np.eye(4), np.ones((height // 4 + 1, half // 4 + 1)))[
            :height, :half
        ].astype(bool)  # fmt: skip
        outside[[0, -1]] = outside[:, [0, -1]] = False
        assert outside.mean() < 0.05


def test_scores_of_zero_are_a_picture():
    scores = np.zeros((4, 4))
    assert block_pixels(scores, partition(scores, 2)).max() == 255
