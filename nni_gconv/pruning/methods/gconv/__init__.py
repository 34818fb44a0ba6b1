"""GConv Prune: dense convolutions become group convolutions by permuting their channels."""

from nni_gconv.pruning.methods.gconv.pruner import GroupConvPruner

__all__ = ["GroupConvPruner"]
