"""The small networks of benchmarks/latency.py: channels cut, groups, and Torch-Pruning's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nni_gconv import (
    FPGMPruner,
    GroupConvPruner,
    ModelSpeedup,
    load_compact,
    save_compact,
)
from nni_gconv.profiling import count
from nni_gconv.training.zoo import create_model

#: Weights are random: time does not depend on them.
BUDGETS = (0.5, 0.25)
GROUPS = (2, 4, 8)
MULTIPLES = 16
#: Torch-Pruning's ratio is searched to this share of the MACs asked.
_NEAR = 0.005


def kinds() -> list[str]:
    """Names of the small networks, as they stand in the tables."""
    cut = [f"channels {budget}" for budget in BUDGETS]
    rounded = [f"channels {BUDGETS[0]}, multiples of {MULTIPLES}"]
    peers = [f"Torch-Pruning {budget}" for budget in BUDGETS]
    return [*cut, *rounded, *peers, *(f"groups {count}" for count in GROUPS)]


def network(name: str, kind: str, folder: Path) -> nn.Module:
    """Make a small network, or load it from the folder where it lies since an earlier run."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    if kind == "dense":
        return model
    file = folder / f"{name}-{kind}".replace(":", "-").replace(" ", "_")
    file = file.with_name(file.name + ".safetensors")
    if not file.is_file():
        save_compact(_makers()[kind](model), file)
    return load_compact(file, lambda: create_model(name))


def _makers() -> dict[str, Callable[[nn.Module], nn.Module]]:
    made: dict[str, Callable[[nn.Module], nn.Module]] = {}
    for budget in BUDGETS:
        made[f"channels {budget}"] = partial(_channels, budget=budget, multiple=1)
        made[f"Torch-Pruning {budget}"] = partial(_peer, budget=budget)
    made[f"channels {BUDGETS[0]}, multiples of {MULTIPLES}"] = partial(
        _channels, budget=BUDGETS[0], multiple=MULTIPLES
    )
    for groups in GROUPS:
        made[f"groups {groups}"] = partial(_grouped, groups=groups)
    return made


def _channels(model: nn.Module, budget: float, multiple: int) -> nn.Module:
    dummy = torch.randn(1, 3, 224, 224)
    config = [{"op_types": ["Conv2d", "Linear"], "round_to": multiple}]
    pruner = FPGMPruner(model, config, budget={"macs": budget}, dummy_input=dummy)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return ModelSpeedup(model, dummy, masks, verify=False).speedup_model().eval()


def _grouped(model: nn.Module, groups: int) -> nn.Module:
    """Every dense convolution that allows it, as a trial would convert it: with its gathers."""
    dummy = torch.randn(1, 3, 224, 224)
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.in_channels % groups == layer.out_channels % groups == 0
    ]
    config = [{"op_names": layers, "num_groups": groups}]
    pruner = GroupConvPruner(model, config, dummy_input=dummy)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return ModelSpeedup(model, dummy, masks, verify=False).speedup_model().eval()


def _peer(model: nn.Module, budget: float) -> nn.Module:
    """Torch-Pruning at its defaults, its ratio searched until the MACs are equal to ours."""
    dummy = torch.randn(1, 3, 224, 224)
    dense = count(model, dummy).macs
    low, high, best = 0.0, 0.95, None
    for _ in range(12):
        ratio = (low + high) / 2
        small = _peer_at(model, dummy, ratio)
        share = count(small, dummy).macs / dense
        if share <= budget * (1 + _NEAR):
            high, best = ratio, small
        else:
            low = ratio
        if abs(share - budget) <= _NEAR * budget:
            return small
    if best is None:
        raise ValueError("Torch-Pruning does not reach the budget")
    return best


def _peer_at(model: nn.Module, dummy: torch.Tensor, ratio: float) -> nn.Module:
    import torch_pruning as tp

    small = copy.deepcopy(model)
    head = [m for m in small.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner = tp.pruner.BasePruner(
        small,
        dummy,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=head,
    )
    pruner.step()
    return small.eval()
