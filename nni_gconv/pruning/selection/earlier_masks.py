"""Masks that hold before a pruner makes its own: those given, and those of an earlier pruner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nni_gconv.errors import ConfigError
from nni_gconv.graph import Coupling, Wiring, decide


def check_unmasked(wrappers: Mapping[str, Any] | None, names: Sequence[str]) -> None:
    """Refuse layers that a pruner before this one masks: NNI would leave them to it in silence."""
    for name in names:
        wrapper = (wrappers or {}).get(name)
        if wrapper is not None and wrapper.pruning_target_spaces:
            raise ConfigError(
                f"from_compressor: {name} is masked by the earlier pruner already; unwrap that one "
                "and make a new pruner for it"
            )


def earlier_masks(
    wrappers: Mapping[str, Any] | None, *, grouped: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Masks that a pruner before this one has made, of what it masks at all.

    Parameters
    ----------
    wrappers : mapping, optional
        NNI's, as ``from_compressor`` hands them on.
    grouped : bool, default False
        Only those that leave all filters and input channels alive, in groups.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, wrapper in (wrappers or {}).items():
        for target, space in wrapper.pruning_target_spaces.items():
            mask = space.mask
            if mask is None or bool(mask.all()):
                continue
            alive = mask.flatten(2).any(2) if mask.dim() > 1 else mask[:, None] != 0
            if not grouped or bool(alive.any(0).all() and alive.any(1).all()):
                found.setdefault(name, {})[target] = mask.detach().clone()
    return found


def check_given(
    coupling: Coupling,
    masks: Mapping[str, Mapping[str, Tensor]],
    budget: Mapping[str, float] | None,
) -> None:
    """Refuse masks beside which channels cannot be ranked: those that silence channels already."""
    if not masks:
        return
    if budget is not None and "latency" in budget:
        raise ConfigError("budget.latency: cannot be measured with masks=")
    kept = {
        coupling.graph.aliases[f"{module}.{target}".lstrip(".")][0]: mask != 0
        for module, targets in masks.items()
        for target, mask in targets.items()
        if mask is not None
    }
    wiring = Wiring(coupling.graph, kept)
    if decide(coupling.graph, coupling.channels, kept, wiring).removed.any():
        raise ConfigError(
            "masks: they silence channels already; cut those first with ModelSpeedup, or prune "
            "channels before grouping and give the masks to GroupConvPruner"
        )


def joined_masks(
    first: Mapping[str, Mapping[str, Tensor | None]],
    second: Mapping[str, Mapping[str, Tensor | None]],
) -> dict[str, dict[str, Tensor]]:
    """What two sets of masks leave together; targets without a mask are left out.

    Examples
    --------
    >>> import torch
    >>> first, second = torch.tensor([1, 0, 1]), torch.tensor([1, 1, 0])
    >>> joined_masks({"a": {"weight": first}}, {"a": {"weight": second}})
    {'a': {'weight': tensor([1, 0, 0])}}
    """
    joined: dict[str, dict[str, Tensor]] = {}
    for masks in (first, second):
        for module, targets in masks.items():
            for target, mask in targets.items():
                if mask is None:
                    continue
                known = joined.setdefault(module, {}).get(target)
                joined[module][target] = mask if known is None else known.to(mask) * mask
    return joined
