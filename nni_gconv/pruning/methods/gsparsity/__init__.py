"""GSparsity: filters die of a group lasso while the network trains, and the dead are cut."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.pruning.methods.gsparsity.pruner import GSparsityPruner

__all__ = ["GSparsityPruner"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"pruner": ["GSparsityPruner"]})
