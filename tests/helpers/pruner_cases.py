"""Every pruner; what stands here passes the whole contract."""

from __future__ import annotations

from functools import partial

from own_method import ToyPruner

from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.pruning.methods.gconv.pruner import GroupConvPruner
from nni_gconv.pruning.methods.gsparsity.pruner import GSparsityPruner
from nni_gconv.pruning.methods.nni import NNIMethodPruner
from nni_gconv.pruning.methods.shuffle.pruner import ShufflePruner
from nni_gconv.pruning.methods.slimming.pruner import SlimmingPruner

PRUNERS = {
    "fpgm": FPGMPruner,
    "gsparsity": GSparsityPruner,
    "slimming": SlimmingPruner,
    "nni-l1": partial(NNIMethodPruner, method="L1NormPruner"),
    "nni-l2": partial(NNIMethodPruner, method="L2NormPruner"),
    "nni-fpgm": partial(NNIMethodPruner, method="FPGMPruner"),
    "own": ToyPruner,
}

#: What goes is decided by their training where the config_list does not say how much.
HAVE_A_GOAL = (GSparsityPruner,)

#: Those that leave group convolutions instead of fewer channels.
GROUP_PRUNERS = {
    "gconv": GroupConvPruner,
    "gconv-shaping": partial(GroupConvPruner, shaping=1.0),
    "gconv-ramp": partial(GroupConvPruner, schedule="cubic"),
    "shuffle": ShufflePruner,
    "shuffle-ramp": partial(ShufflePruner, schedule={"name": "linear", "end": 2}),
}
