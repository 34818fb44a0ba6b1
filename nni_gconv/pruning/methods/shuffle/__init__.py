"""Structured Sparsification: group convolution and channel shuffle are learned together."""

from nni_gconv.pruning.methods.shuffle.pruner import ShufflePruner

__all__ = ["ShufflePruner"]
