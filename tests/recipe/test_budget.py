"""A budget that the speedup does not meet is an error, not a note."""

import pytest
import torch
from tiny_recipes import tiny

from nni_gconv import Recipe, run_recipe
from nni_gconv.errors import BudgetError
from nni_gconv.profiling import check_met
from nni_gconv.pruning import ChannelPruner, register_pruner


@register_pruner("masks_too_little")
class MasksTooLittle(ChannelPruner):
    """Promises a budget and masks nothing."""

    def rank(self, filters):
        return self.combine([f.norm(dim=1) for f in filters])

    def masks_of(self, removed, metrics):
        masks = super().masks_of(removed, metrics)
        return {n: {t: torch.ones_like(m) for t, m in ts.items()} for n, ts in masks.items()}


def test_a_missed_budget_ends_the_trial(tmp_path):
    recipe = Recipe(**tiny(prune={"method": "masks_too_little", "budget": {"macs": 0.6}}))
    with pytest.raises(BudgetError, match=r"budget\.macs: 1\.000 of dense .* not 0\.600"):
        run_recipe(recipe, output=tmp_path / "run", quiet=True)


def test_absolute_counts_and_reasons():
    check_met({"params": 50, "latency": 0.1}, {"params": 50}, {"params": 100})
    with pytest.raises(BudgetError, match=r"0\.510 of dense .* stayed: conv1: why\)"):
        check_met({"params": 50}, {"params": 51}, {"params": 100}, ["conv1: why"])
