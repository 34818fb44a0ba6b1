"""Every channel pruner; what stands here passes the whole contract."""

from __future__ import annotations

from functools import partial

from nni_gconv.pruning.fpgm import FPGMPruner
from nni_gconv.pruning.nni_methods import NNIMethodPruner

PRUNERS = {
    "fpgm": FPGMPruner,
    "nni-l1": partial(NNIMethodPruner, method="L1NormPruner"),
    "nni-l2": partial(NNIMethodPruner, method="L2NormPruner"),
    "nni-fpgm": partial(NNIMethodPruner, method="FPGMPruner"),
}
