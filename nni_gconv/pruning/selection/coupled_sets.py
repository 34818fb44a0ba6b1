"""What is asked of coupled sets, and what their layers agree on: functions of arrays and names."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.config_list import LayerConfig
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.graph import CoupledSet, Coupling, Graph, Member
from nni_gconv.pruning.selection.allocation import Request, removal_steps


class Goal(Protocol):
    """What a layer asks by now: NNI's scheduling pruners move it."""

    sparse_ratio: float | None
    sparse_threshold: float | None
    min_sparse_ratio: float | None


def followers(
    coupling: Coupling, sets: Sequence[CoupledSet], further: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Modules whose scale or shift acts on channels of these sets, with what is masked of them.

    Those that are named `further` are masked as layers are.
    """
    going = coupling.empty()
    for coupled in sets:
        going[coupled.classes] = True
    names: dict[str, list[str]] = {}
    for axis in coupling.channels.axes.values():
        module, _, target = axis.tensor.rpartition(".")
        touched = going[coupling.channels.of(axis.labels)].any() and axis.role in ("bias", "scale")
        owner = coupling.graph.modules[module]
        if touched and compat.is_maskable(owner, target):
            both = [t for t in ("weight", "bias") if compat.is_maskable(owner, t)]
            names.setdefault(module, both)
            if target not in names[module]:
                names[module].append(target)
    for module in further:
        names.setdefault(module, ["weight", "bias"])
    return names


def entry_beside(name: str, targets: Sequence[str]) -> dict[str, Any]:
    """Let NNI wrap a module for tensors that follow others, whatever their names."""
    settings = {target: {"apply_method": "mul"} for target in targets}
    return {"op_names": [name], "target_names": list(targets), "target_settings": settings}


def unit_matrix(weight: Tensor, dim: int, rows: np.ndarray, units: np.ndarray, size: int) -> Tensor:
    """Filters of a layer as one row per channel; several filters of a channel stand in one row."""
    flat = weight.movedim(dim, 0).flatten(1)
    order = np.argsort(units, kind="stable")
    gathered = flat[torch.from_numpy(rows[order]).to(flat.device)]
    if len(set(np.bincount(units, minlength=size).tolist())) != 1:
        raise ConfigError("layers that make a channel with unequal numbers of filters")
    return gathered.reshape(size, -1)


def filter_scores(scores: Tensor, member: Member, known: Tensor | None, size: int) -> Tensor:
    """Give each filter of a layer its channel's score; of filters in no set it is not a number.

    Parameters
    ----------
    scores : Tensor of float64, shape (channels,)
    member : Member
        The layer's part in the set.
    known : Tensor or None
        Scores of filters in other sets; changed in place.
    size : int
        Filters of the layer.
    """
    row = torch.full((size,), torch.nan, dtype=torch.float64) if known is None else known
    row[torch.from_numpy(member.rows)] = scores[torch.from_numpy(member.units)]
    return row


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
        "round_to": math.lcm(*(layer.round_to for layer in settings if layer.round_to != "auto")),
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


def with_coupled(
    model: nn.Module,
    dummy_input: Any,
    graph: Graph,
    layers: Mapping[str, LayerConfig],
    excluded: Collection[str] = (),
) -> dict[str, LayerConfig]:
    """Select with the layers that say ``couple`` what makes the same channels.

    What is selected so is asked what the layer is asked that it follows; layers that are selected
    themselves keep their own settings, and those in `excluded` stay out.

    Returns
    -------
    dict of str to LayerConfig
        In the order of the model.
    """
    found = dict(layers)
    if not any(layer.couple for layer in layers.values()):
        return found
    coupling = Coupling.trace(model, dummy_input, graph=graph)
    while True:
        before = len(found)
        for coupled in coupling.sets:
            names = [m.module for m in coupled.members]
            leader = next((found[n] for n in names if n in found and found[n].couple), None)
            if leader is None:
                continue
            for name in names:
                if name not in excluded:
                    found.setdefault(name, leader)
        if len(found) == before:
            return {name: found[name] for name in coupling.graph.modules if name in found}


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


def asked_together(
    scores: np.ndarray,
    steps: list[np.ndarray],
    asked: Sequence[Goal],
    share: float,
    most: Sequence[float | None],
) -> Request:
    """Gather what the layers of a set ask; where they differ the more careful one wins.

    Parameters
    ----------
    scores, steps
        Of the set's channels.
    asked : sequence
        What each layer asks.
    share : float
        How much of it is asked by now.
    most : sequence of float or None
        The largest share of each layer that may go.
    """
    ratios = [a.sparse_ratio for a in asked if a.sparse_ratio is not None]
    thresholds = [a.sparse_threshold for a in asked if a.sparse_threshold is not None]
    return Request(
        scores=scores,
        steps=steps,
        ratio=min(ratios) * share if ratios else None,
        threshold=min(thresholds) * share if thresholds and not ratios else None,
        low=max(a.min_sparse_ratio or 0.0 for a in asked) * share,
        high=min(1.0 if largest is None else largest for largest in most),
    )
