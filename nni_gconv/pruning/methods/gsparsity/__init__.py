"""GSparsity: filters die of a group lasso while the network trains, and the dead are cut."""

from nni_gconv.pruning.methods.gsparsity.pruner import GSparsityPruner

__all__ = ["GSparsityPruner"]
