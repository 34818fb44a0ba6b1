"""How far layers are split, and how strongly they are penalised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nni_gconv.groupconv.partition import NestedPartition, nested_counts
from nni_gconv.pruning.l1_penalty import add_subgradient_, shrink_
from nni_gconv.pruning.methods.shuffle.hierarchy import (
    bisect_threshold,
    deepest,
    next_strength,
    saved_share,
)

NEAR_DIAGONAL = np.array(
    [[10, 1, 0.2, 0.1], [1, 10, 0.1, 0.2], [0.2, 0.1, 10, 1], [0.1, 0.2, 1, 10]]
)
HALVES = np.kron(np.eye(2), np.ones((4, 4)))


def kept(scores):
    counts = nested_counts(int(np.gcd(*scores.shape)))
    return NestedPartition.in_order(*scores.shape, counts).kept(scores)


class TestDepth:
    @pytest.mark.parametrize(
        ("scores", "loss", "groups"),
        [
            (NEAR_DIAGONAL, 0.0, 1), (NEAR_DIAGONAL, 0.02, 1), (NEAR_DIAGONAL, 0.03, 2),
            (NEAR_DIAGONAL, 0.1, 2), (NEAR_DIAGONAL, 0.12, 4), (NEAR_DIAGONAL, 1.0, 4),
            (np.eye(8), 0.0, 8), (np.eye(8), 0.1, 8),
            (HALVES, 0.1, 2), (np.ones((8, 8)), 0.1, 1), (np.ones((8, 8)), 0.6, 2),
            (np.zeros((4, 4)), 0.1, 1), (np.zeros((3, 4)), 1.0, 1),
        ],
    )  # fmt: skip
    def test_the_most_groups_that_keep_enough(self, scores, loss, groups):
        counts = nested_counts(int(np.gcd(*scores.shape)))
        assert counts[deepest(kept(scores), loss)] == groups

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_the_scale_of_the_scores_does_not_matter(self, scale):
        assert deepest(kept(scale * np.eye(8)), 0.0) == 3
        assert deepest(kept(scale * NEAR_DIAGONAL), 0.1) == 1


class TestThreshold:
    """Two layers, the kernels of the second nine times as large."""

    shares = (kept(NEAR_DIAGONAL), kept(HALVES + 0.02))
    costs = ((16, 8, 4), (576, 288, 144, 72))

    def splits(self, loss):
        return [deepest(share, loss) for share in self.shares]

    def saved(self, loss):
        return saved_share(16 + 576, self.costs, self.splits(loss))

    @pytest.mark.parametrize(
        ("loss", "splits", "saved"),
        [
            (0.0, [0, 0], 0.0), (0.01, [0, 0], 0.0), (0.02, [0, 1], 0.4865), (0.04, [1, 1], 0.5),
            # The last split of the first layer was out of reach of the paper's code.
            (0.5, [2, 1], 0.5068), (0.9, [2, 3], 0.8716),
        ],
    )  # fmt: skip
    def test_what_a_loss_saves(self, loss, splits, saved):
        assert self.splits(loss) == splits
        assert self.saved(loss) == pytest.approx(saved, abs=5e-5)

    def test_the_rest_of_the_network_counts(self):
        assert saved_share(1000, self.costs, [0, 1]) == pytest.approx(0.288)

    def test_the_rule_of_the_paper(self):
        assert bisect_threshold(self.saved, 0.5, tolerance=0.01, halvings=10) == 0.5

    def test_no_smaller_loss_saves_enough(self):
        assert self.splits(bisect_threshold(self.saved, 0.5)) == [1, 1]
        for target in (0.01, 0.4865, 0.6, 0.87):
            loss = bisect_threshold(self.saved, target)
            assert self.saved(loss) >= target
            assert self.saved(loss - 1e-9) < target

    def test_the_end_of_the_scale_is_the_last_resort(self):
        assert bisect_threshold(lambda loss: float(loss >= 1), 0.5, halvings=10) == 1.0


class TestStrength:
    @pytest.mark.parametrize(
        ("saved", "before", "epoch", "strength", "after"),
        [
            (0.10, 0.090, 10, 8e-6, 8e-6),
            (0.10, 0.098, 10, 8e-6, 10e-6),
            (0.36, 0.30, 10, 8e-6, 6e-6),
            (0.36, 0.30, 10, 1e-6, 0.0),
            (0.10, 0.098, 3, 8e-6, 8e-6),
        ],
    )
    def test_it_follows_what_is_saved(self, saved, before, epoch, strength, after):
        found = next_strength(
            strength, saved=saved, before=before, target=0.35, epoch=epoch, epochs=60, change=2e-6
        )
        assert found == pytest.approx(after, abs=1e-18)


class TestPenalty:
    costs = torch.from_numpy(NestedPartition.in_order(2, 2, (1, 2)).costs()).float()

    def test_the_subgradient(self):
        weight = torch.tensor([[0.5, -0.2], [0.3, 0.4]])
        gradient = torch.zeros(2, 2)
        add_subgradient_([gradient], [weight], [0.01 * self.costs])
        assert torch.allclose(gradient, torch.tensor([[0.0, -0.01], [0.01, 0.0]]), atol=0)

    def test_the_proximal_map_reaches_zero(self):
        weight = torch.tensor([[0.5, -0.2], [0.3, 0.4]])[:, :, None, None]
        shrink_([weight], [0.25 * self.costs[:, :, None, None]])
        assert torch.allclose(weight[:, :, 0, 0], torch.tensor([[0.5, 0.0], [0.05, 0.4]]))
        assert float(weight[0, 1]) == 0
