"""Criteria that rank channels, one file each: the paper, the formula, the class.

Where to begin
--------------
``base``      what all criteria share: how layers of a set are joined, and sets ranked together
``evidence``  passes over calibration images that leave the model as it was
``magnitude``, ``lamp``, ``random``                look at weights, or at nothing
``activation``                                     looks at what layers read
``taylor``, ``fisher``, ``hessian``                look at gradients of the loss
``second_order``                                   lets the other channels make up for what goes

``docs/criteria.md`` says which to use when.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.pruning.criteria.activation import ActivationPruner
    from nni_gconv.pruning.criteria.base import Criterion, DataCriterion
    from nni_gconv.pruning.criteria.fisher import FisherPruner
    from nni_gconv.pruning.criteria.hessian import HessianPruner
    from nni_gconv.pruning.criteria.lamp import LampPruner
    from nni_gconv.pruning.criteria.magnitude import MagnitudePruner
    from nni_gconv.pruning.criteria.random import RandomPruner
    from nni_gconv.pruning.criteria.second_order import SecondOrderPruner
    from nni_gconv.pruning.criteria.taylor import TaylorPruner

__all__ = [
    "ActivationPruner",
    "Criterion",
    "DataCriterion",
    "FisherPruner",
    "HessianPruner",
    "LampPruner",
    "MagnitudePruner",
    "RandomPruner",
    "SecondOrderPruner",
    "TaylorPruner",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "activation": ["ActivationPruner"],
        "base": ["Criterion", "DataCriterion"],
        "fisher": ["FisherPruner"],
        "hessian": ["HessianPruner"],
        "lamp": ["LampPruner"],
        "magnitude": ["MagnitudePruner"],
        "random": ["RandomPruner"],
        "second_order": ["SecondOrderPruner"],
        "taylor": ["TaylorPruner"],
    },
)
