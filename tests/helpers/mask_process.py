"""Print a digest of each pruner's masks, from a process of its own.

usage: mask_process.py
"""

from __future__ import annotations

import hashlib
import json

import torch
from pruner_cases import PRUNERS
from pruning_nets import GroupBlock


def digest(masks) -> str:
    found = hashlib.sha256()
    for module in masks:
        for target, mask in masks[module].items():
            found.update(f"{module}.{target}".encode())
            if mask is not None:
                found.update(mask.numpy().tobytes())
    return found.hexdigest()


def digests() -> dict[str, str]:
    made = {}
    for name, make in PRUNERS.items():
        torch.manual_seed(0)
        config = [
            {"op_types": ["Conv2d"], "exclude_op_names": ["conv1"], "sparse_ratio": 0.4},
            {"op_names": ["conv1"], "sparse_ratio": 0.4, "global_group_id": "a"},
        ]
        made[name] = digest(
            make(GroupBlock(), config, dummy_input=torch.zeros(1, 3, 8, 8)).compress()[1]
        )
    return made


if __name__ == "__main__":
    print(json.dumps(digests()))
