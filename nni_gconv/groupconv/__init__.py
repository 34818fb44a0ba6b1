"""Group convolutions: what a layer allows, files of group counts, and layers made with them.

Begin with `choices` (the counts a layer allows), `partition` (which channels share a group; by
measured output error: `output_error`) and `search` (how many groups each layer gets). `gather`
holds the permutations that are left around a group convolution. Knows of profiling and config_list;
not of pruners.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.groupconv.choices import (
        check_count,
        group_choices,
        groups_for_max_size,
        groups_of,
        not_groupable,
    )
    from nni_gconv.groupconv.config import (
        check_groups,
        read_group_config,
        write_entries,
        write_group_config,
    )
    from nni_gconv.groupconv.gather import gathers_of, type_name, unwrapped, wrap_gathers
    from nni_gconv.groupconv.layers import CONVOLUTIONS, conv_like, replace_layers
    from nni_gconv.groupconv.output_error import OutputError, errors_of_groups, partition_by_error

__all__ = [
    "CONVOLUTIONS",
    "OutputError",
    "check_count",
    "check_groups",
    "conv_like",
    "errors_of_groups",
    "gathers_of",
    "group_choices",
    "groups_for_max_size",
    "groups_of",
    "not_groupable",
    "partition_by_error",
    "read_group_config",
    "replace_layers",
    "type_name",
    "unwrapped",
    "wrap_gathers",
    "write_entries",
    "write_group_config",
]

# Lazy: `partition` needs no torch, and its users should not wait for it.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "choices": [
            "check_count",
            "group_choices",
            "groups_for_max_size",
            "groups_of",
            "not_groupable",
        ],
        "config": ["check_groups", "read_group_config", "write_entries", "write_group_config"],
        "gather": ["gathers_of", "type_name", "unwrapped", "wrap_gathers"],
        "layers": ["CONVOLUTIONS", "conv_like", "replace_layers"],
        "output_error": ["OutputError", "errors_of_groups", "partition_by_error"],
    },
)
