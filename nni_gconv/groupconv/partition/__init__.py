"""Splitting a matrix of kernel scores into equal groups: arrays in, arrays out.

    from nni_gconv import partition

Needs numpy and scipy only; torch tensors are welcome where arrays are. One file for each step:
`criterion` (scores), `grps` (the paper's heuristic), `assignment` (exact balanced assignment),
`spectral` and `anneal` (starts that find more), `exact` (small problems), `bounds` (how much is
left to find), `solve` (their order), `sides` and `joint` (layers that share sides), `nested`
(groups that are split again and again), `patterns` (splits that look at no score).
"""

from nni_gconv.groupconv.partition.bounds import upper_bound
from nni_gconv.groupconv.partition.criterion import kernel_norms, l1, l2, taylor
from nni_gconv.groupconv.partition.joint import partition_joint
from nni_gconv.groupconv.partition.result import Partition
from nni_gconv.groupconv.partition.solve import METHODS, Method, partition, partition_many

__all__ = [
    "METHODS",
    "Method",
    "Partition",
    "kernel_norms",
    "l1",
    "l2",
    "partition",
    "partition_joint",
    "partition_many",
    "taylor",
    "upper_bound",
]
