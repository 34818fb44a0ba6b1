"""What a pruner works out of coupled sets and settings: pure functions of arrays and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.config_list import LayerConfig
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.graph import CoupledSet, Coupling, Wiring, decide, known_values
from nni_gconv.pruning.selection.allocation import Request, removal_steps

__all__ = [
    "agreed",
    "check_given",
    "check_unmasked",
    "earlier_masks",
    "first_reason",
    "followers",
    "joined_masks",
    "listed",
    "loud",
    "main_reasons",
    "skip_lines",
    "step_limits",
    "taken_channels",
    "tied_weights",
    "unit_matrix",
]


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


def followers(coupling: Coupling, going: np.ndarray) -> list[str]:
    """Modules whose scale or shift acts on channels that may go."""
    names: dict[str, None] = {}
    for axis in coupling.channels.axes.values():
        module = axis.tensor.rpartition(".")[0]
        touched = going[coupling.channels.of(axis.labels)].any() and axis.role in ("bias", "scale")
        if touched and compat.has_scale_and_shift(coupling.graph.modules[module]):
            names.setdefault(module)
    return list(names)


def unit_matrix(weight: Tensor, dim: int, rows: np.ndarray, units: np.ndarray, size: int) -> Tensor:
    """Filters of a layer as one row per channel; several filters of a channel stand in one row."""
    flat = weight.movedim(dim, 0).flatten(1)
    order = np.argsort(units, kind="stable")
    gathered = flat[torch.from_numpy(rows[order]).to(flat.device)]
    if len(set(np.bincount(units, minlength=size).tolist())) != 1:
        raise ConfigError("layers that make a channel with unequal numbers of filters")
    return gathered.reshape(size, -1)


def taken_channels(request: Request, steps: int) -> np.ndarray:
    """Channels in the first `steps` steps of a request."""
    gone = request.steps[:steps]
    return np.concatenate(gone) if gone else np.zeros(0, dtype=np.int64)


def agreed(votes: Sequence[np.ndarray], requests: Sequence[Request], **limits: Any) -> np.ndarray:
    """Channels that every voter removes, less what blocks, floors and multiples keep.

    Parameters
    ----------
    votes : sequence of ndarray of int
        Channels that each layer of a set would remove.
    requests : sequence of Request
        What each layer asked, with its scores.
    **limits
        As for :func:`nni_gconv.pruning.selection.allocation.removal_steps`.
    """
    size = requests[0].size
    counts = np.bincount(np.concatenate(votes), minlength=size)
    every = counts == len(votes)
    relative = [r.scores / (np.abs(r.scores).mean() or 1.0) for r in requests]
    # What not all agree on ranks behind everything, so that no step before it holds it.
    scores = np.where(every, np.mean(relative, axis=0), np.inf)
    gone: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    for step in removal_steps(scores, **limits):
        if not every[step].all():
            break
        gone.append(step)
    return np.concatenate(gone)


def loud(coupling: Coupling, going: np.ndarray) -> dict[int, str]:
    """Find classes that are not silent although all that acts on them is masked.

    ``sigmoid(0)`` is 0.5, and a batch norm without scale and shift emits what its mean is: a layer
    that reads such a channel reads a constant, and the channel cannot be removed.

    Parameters
    ----------
    coupling : Coupling
        The traced model.
    going : ndarray of bool, shape (classes,)
        The classes that a pruner may remove.

    Returns
    -------
    dict of int to str
        Class -> the layer that would read a constant.
    """
    kept = {
        f"{module}.{target}": mask != 0
        for module, targets in coupling.masks(going).items()
        for target, mask in targets.items()
    }
    values = known_values(coupling.graph, kept)
    found: dict[int, str] = {}
    for read in coupling.channels.reads:
        classes = coupling.channels.of(read.labels).reshape(-1)
        value = values.get(read.node.args[0])  # type: ignore[arg-type]
        silent = np.zeros(len(classes), dtype=bool)
        if isinstance(value, Tensor) and value.numel() in (1, len(classes)):
            silent[:] = (value.reshape(-1) == 0).numpy()
        for number in classes[~silent & going[classes]]:
            found.setdefault(int(number), coupling.graph.owner(read.node))
    return found


def step_limits(
    coupled: CoupledSet, settings: Sequence[LayerConfig], widths: Sequence[int]
) -> dict[str, Any]:
    """Arguments of ``allocation.removal_steps`` that layers ask for.

    Parameters
    ----------
    coupled : CoupledSet
        The set.
    settings : sequence of LayerConfig
        What its layers were asked.
    widths : sequence of int
        Channels of each of these layers, of which the set may be a part.
    """
    return {
        "blocks": joined_blocks(coupled, settings),
        # The set keeps its share of a layer's least width.
        "min_channels": max(
            -(-layer.min_channels * coupled.size // width)
            for layer, width in zip(settings, widths, strict=True)
        ),
        "round_to": int(np.lcm.reduce([layer.round_to for layer in settings])),
    }


def joined_blocks(coupled: CoupledSet, settings: Sequence[LayerConfig]) -> np.ndarray | None:
    """Blocks of the graph's groups together with those of ``internal_metric_block``."""
    blocks = coupled.parts
    for layer in settings:
        asked = layer.internal_metric_block
        if asked is None or asked == 1:
            continue
        if coupled.size % asked:
            raise ConfigError(
                f"internal_metric_block: {asked} does not divide the {coupled.size} channels of "
                f"{coupled.name}"
            )
        own = np.arange(coupled.size) // (coupled.size // asked)
        if blocks is not None:
            own = np.unique(np.stack([blocks, own]), axis=1, return_inverse=True)[1].reshape(-1)
        if len(set(np.bincount(own).tolist())) != 1:
            raise ConfigError(
                f"internal_metric_block: {asked} blocks cut across the groups of {coupled.name}"
            )
        blocks = own
    return blocks


def tied_weights(model: nn.Module, layers: Mapping[str, LayerConfig]) -> list[tuple[str, str]]:
    """Pairs of weights whose filters the user wants to go together, checked to be possible."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first: dict[Any, str] = {}
    ties = []
    for name, layer in layers.items():
        leaders = {}
        if layer.dependency_group_id is not None:
            leader = first.setdefault(layer.dependency_group_id, name)
            if leader != name:
                leaders[leader] = f"dependency_group_id {layer.dependency_group_id!r}"
        if layer.align is not None:
            leaders[layer.align] = "align"
        for leader, key in leaders.items():
            _check_tie(modules, leader, name, key)
            ties.append((f"{leader}.weight", f"{name}.weight"))
    return ties


def _check_tie(modules: Mapping[str, nn.Module], leader: str, name: str, key: str) -> None:
    if leader not in modules:
        allowed = [m for m in modules if m]
        raise ConfigError(unknown_name("module", leader, allowed, f"config_list: {name}: align"))
    widths = []
    for module in (leader, name):
        weight = getattr(modules[module], "weight", None)
        kind = type(modules[module]).__name__
        if not isinstance(weight, Tensor) or "Transpose" in kind:
            raise ConfigError(f"config_list: {key}: {module} is a {kind}, which cannot be tied")
        widths.append(len(weight))
    if widths[0] != widths[1]:
        raise ConfigError(
            f"config_list: {key} ties {leader} with {widths[0]} channels to {name} with "
            f"{widths[1]}; only equal widths can lose the same channels"
        )


def listed(names: list[str]) -> str:
    """Name the first three and count the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def first_reason(skipped: Mapping[str, str]) -> str:
    """Say of the first layer why it keeps its channels."""
    name, reason = next(iter(skipped.items()), ("the model", "no layer was selected"))
    return f"{name}: {reason}"


def main_reasons(skipped: Mapping[str, str]) -> str:
    """Say why most layers are left out: the two commonest reasons, each with its layers.

    Examples
    --------
    >>> main_reasons({"a": "too small", "b": "too odd", "c": "too odd"})
    'b, c: too odd; a: too small'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    common = sorted(by_reason.items(), key=lambda item: -len(item[1]))[:2]
    return "; ".join(f"{listed(names)}: {reason}" for reason, names in common)


def skip_lines(skipped: Mapping[str, str]) -> list[str]:
    """One line for each reason, with the layers that it keeps whole."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"not pruned: {listed(names)}: {reason}" for reason, names in by_reason.items()]
