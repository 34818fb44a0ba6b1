"""Group counts of convolutions: what a layer allows, files of them, and layers made with them.

Knows of torch alone: the zoo builds grouped networks with it, the pruners search and mask by it.
"""

from nni_gconv.groupconv.choices import (
    check_count,
    group_choices,
    groups_for_max_size,
    not_groupable,
)
from nni_gconv.groupconv.config import (
    check_groups,
    read_group_config,
    write_entries,
    write_group_config,
)
from nni_gconv.groupconv.layers import CONVOLUTIONS, conv_like, replace_layers

__all__ = [
    "CONVOLUTIONS",
    "check_count",
    "check_groups",
    "conv_like",
    "group_choices",
    "groups_for_max_size",
    "not_groupable",
    "read_group_config",
    "replace_layers",
    "write_entries",
    "write_group_config",
]
