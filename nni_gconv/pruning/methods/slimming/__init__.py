"""Network slimming: an L1 penalty on batch norm scales, then a cut by their size."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.pruning.methods.slimming.pruner import SlimmingPruner

__all__ = ["SlimmingPruner"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"pruner": ["SlimmingPruner"]})
