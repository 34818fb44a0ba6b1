"""GConv Prune: dense convolutions become group convolutions by permuting their channels."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.pruning.methods.gconv.pruner import GroupConvPruner

__all__ = ["GroupConvPruner"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"pruner": ["GroupConvPruner"]})
