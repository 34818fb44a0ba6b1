"""Network slimming: an L1 penalty on batch norm scales, then a cut by their size."""

from nni_gconv.pruning.methods.slimming.pruner import SlimmingPruner

__all__ = ["SlimmingPruner"]
