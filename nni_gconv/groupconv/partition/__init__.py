"""Splitting a matrix of kernel scores into equal groups: arrays in, arrays out.

Begin with :func:`partition` (also ``from nni_gconv import partition``). Needs numpy and scipy only;
torch tensors are welcome where arrays are. One file for each step: `criterion` (scores), `grps`
(the paper's heuristic), `assignment` (exact balanced assignment), `spectral` and `anneal` (starts
that find more), `exact` (small problems), `bounds` (how much is left to find), `solve` (their
order), `sides` and `joint` (layers that share sides), `nested` (groups that are split again and
again), `patterns` (splits that look at no score), `picture`.
"""

from nni_gconv.groupconv.partition.assignment import balanced_assignment
from nni_gconv.groupconv.partition.bounds import upper_bound
from nni_gconv.groupconv.partition.criterion import kernel_norms, l1, l2, taylor
from nni_gconv.groupconv.partition.joint import partition_joint
from nni_gconv.groupconv.partition.nested import NestedPartition, arrange, nested_counts
from nni_gconv.groupconv.partition.patterns import PATTERNS, fixed_pattern
from nni_gconv.groupconv.partition.picture import block_pixels
from nni_gconv.groupconv.partition.result import Partition, numbered_by_column
from nni_gconv.groupconv.partition.solve import (
    METHODS,
    Method,
    checked_count,
    partition,
    partition_many,
)

__all__ = [
    "METHODS",
    "PATTERNS",
    "Method",
    "NestedPartition",
    "Partition",
    "arrange",
    "balanced_assignment",
    "block_pixels",
    "checked_count",
    "fixed_pattern",
    "kernel_norms",
    "l1",
    "l2",
    "nested_counts",
    "numbered_by_column",
    "partition",
    "partition_joint",
    "partition_many",
    "taylor",
    "upper_bound",
]
