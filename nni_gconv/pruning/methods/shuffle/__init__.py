"""Structured Sparsification: group convolution and channel shuffle are learned together."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.pruning.methods.shuffle.pruner import ShufflePruner

__all__ = ["ShufflePruner"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"pruner": ["ShufflePruner"]})
