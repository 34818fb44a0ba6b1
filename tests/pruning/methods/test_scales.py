"""The thresholds and the penalty of network slimming, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nni_gconv.pruning.l1_penalty import add_subgradient_, shrink_
from nni_gconv.pruning.methods.slimming.scales import (
    clamped_threshold,
    kept,
    percentile_threshold,
)

LAYERS = [
    torch.tensor([0.9, 0.05, -0.6, 0.01]),
    torch.tensor([0.2, 0.02, 0.03, 0.04, 0.5, -0.7]),
    torch.tensor([0.001, 0.002]),
]


def bits(stays):
    return "".join(str(int(s)) for s in stays)


@pytest.mark.parametrize(
    ("ratio", "threshold", "expected"),
    [
        (0.25, 0.02, ["1110", "111111", "01"]),
        (0.5, 0.05, ["1110", "100011", "01"]),
        (0.7, 0.5, ["1010", "000011", "01"]),
    ],
)
def test_global_percentile(ratio, threshold, expected):
    found = percentile_threshold(LAYERS, ratio)
    assert found == pytest.approx(threshold)
    assert [bits(kept([scale], found)) for scale in LAYERS] == expected
    assert bits(kept([LAYERS[2]], found, min_channels=0)) == "00"


def test_the_clamp_lets_one_weak_layer_undo_all():
    threshold = clamped_threshold(LAYERS, percentile_threshold(LAYERS, 0.7))
    assert threshold == pytest.approx(0.002)
    assert [bits(kept([scale], threshold)) for scale in LAYERS] == ["1111", "111111", "01"]


def test_the_largest_scales_stay_whatever_their_sign():
    scale = torch.tensor([-0.9, 0.1, 0.05])
    assert bits(kept([scale], 1.0)) == "100"
    assert bits(kept([scale], 1.0, min_channels=2)) == "110"
    assert bits(kept([scale], 0.1, min_channels=2)) == "110"


def test_a_channel_stays_if_any_coupled_layer_needs_it():
    members = [torch.tensor([0.9, 0.01, 0.3, 0.02]), torch.tensor([0.02, 0.03, 0.4, 0.5])]
    assert bits(kept(members, 0.1)) == "1011"


def test_ratios_that_are_not_binary_and_the_whole():
    scales = [torch.arange(1.0, 101.0)]
    assert percentile_threshold(scales, 0.29) == 30.0  # int(0.29 * 100) is 28
    assert percentile_threshold(scales, 0.0) == 1.0
    assert percentile_threshold(scales, 1.0) == math.inf


def test_subgradient():
    gradient = torch.full((3,), 0.1)
    add_subgradient_([gradient], [torch.tensor([0.5, -0.2, 0.0])], [torch.full((3,), 0.001)])
    assert torch.allclose(gradient, torch.tensor([0.101, 0.099, 0.1]))
    add_subgradient_([], [], [])


def test_the_proximal_map_minimises_what_it_should():
    """prox(v) = argmin_x t |x| + (x - v)^2 / 2, found on a fine grid."""
    grid = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    for value in (-0.9, -0.3, -0.1, 0.0, 0.05, 0.25, 0.7):
        scale = torch.tensor([value], dtype=torch.float64)
        shrink_([scale], [torch.tensor([0.25], dtype=torch.float64)])
        best = grid[(0.25 * grid.abs() + (grid - value) ** 2 / 2).argmin()]
        assert float(scale) == pytest.approx(float(best), abs=2e-5)


def test_what_shrinks_to_zero_is_zero_exactly():
    scales = [torch.tensor([1e-3, -0.1, 0.3]), torch.tensor([-1e-30])]
    shrink_(scales, [torch.tensor([0.1, 0.1, 0.0]), torch.tensor([1e-20])])
    assert scales[0].tolist() == [0.0, 0.0, pytest.approx(0.3)]
    assert scales[1].tolist() == [0.0]
