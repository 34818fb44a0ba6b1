"""What a group lasso on filters asks and what came of it: plain functions, no NNI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv.config_list import modern, resolve
from nni_gconv.errors import ConfigError
from nni_gconv.graph import Coupling, Member, op_name
from nni_gconv.pruning.selection.cost import CostModel
from nni_gconv.training import gain_scale, group_soft_threshold

#: Key of ours in a config_list.
GAIN_KEY = "gain"
#: Norms relative to the largest of a layer: dead up to the first, alive from the second.
_DEAD, _ALIVE = 1e-5, 1e-1
#: What is left of the norm of a filter that is about to die.
_DYING = 0.05
#: Quantile of what dying filters lost in an epoch that stands for all.
_SLOWEST = 0.25
#: Share of the largest possible loss from which on a larger gain brings no more.
_SATURATED = 0.8


def layer_gains(
    model: nn.Module, config_list: Sequence[Mapping[str, Any]], default: float
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Find the gain of each selected layer.

    Parameters
    ----------
    model : nn.Module
        The model the names belong to.
    config_list : sequence of mapping
        NNI's config_list with ``gain`` beside its keys; later entries override earlier ones.
    default : float
        For layers whose entries have none.

    Returns
    -------
    gains : dict of str to float
        In the order of the model.
    config_list : list of dict
        The same without ``gain``.

    Raises
    ------
    ConfigError
        A wrong key, value or pattern; the message says which entry.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    >>> entries = [{"op_types": ["Conv2d"]}, {"op_names": ["1"], "gain": 0.1}]
    >>> layer_gains(net, entries, 0.05)[0]
    {'0': 0.05, '1': 0.1}
    """
    config_list = modern(model, config_list)
    selected, _ = resolve(model, config_list, extra_keys=(GAIN_KEY,))
    gains = dict.fromkeys(selected, not_negative(default, "gain"))
    for number, entry in enumerate(config_list):
        if entry.get(GAIN_KEY) is not None:
            gain = not_negative(entry[GAIN_KEY], f"config_list[{number}].{GAIN_KEY}")
            names = resolve(model, [entry], extra_keys=(GAIN_KEY,))[0]
            gains.update(dict.fromkeys((n for n in names if n in gains), gain))
    return gains, [{k: v for k, v in entry.items() if k != GAIN_KEY} for entry in config_list]


def gain_factor(shrunk: float, epochs_left: int, possible: float = 1.0) -> float:
    """Return the factor by which the gain changes after an epoch, so that filters die in time.

    Parameters
    ----------
    shrunk : float
        Share of their norm that the filters which have to die lost in this epoch; below 0 they
        grew.
    epochs_left : int
        Epochs in which they should come down to a twentieth of what they are.
    possible : float, default 1
        What they can lose in an epoch at most. Close to it a larger gain brings no more.

    Returns
    -------
    float
        From 0.5 to 2: the wanted loss, the same in each epoch that is left, over that found.

    Examples
    --------
    >>> round(gain_factor(0.2, epochs_left=10), 2), gain_factor(0.01, epochs_left=10)
    (1.29, 2.0)
    >>> gain_factor(0.2, epochs_left=10, possible=0.2)
    1.0
    """
    wanted = 1 - _DYING ** (1 / max(1, epochs_left))
    factor = max(0.5, min(2.0, wanted / shrunk)) if shrunk > 0 else 2.0
    return min(factor, 1.0) if shrunk > _SATURATED * possible else factor


def loss_of_norm(before: np.ndarray, now: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Share of their norm that filters lost, relative to the larger: from -1 (grown) to 1.

    Parameters
    ----------
    before, now : ndarray of float, shape (n,)
        Norms; where `chosen`, the present one is not zero.
    chosen : ndarray of bool, shape (n,)
        The filters to look at.

    Examples
    --------
    >>> loss_of_norm(np.array([2.0, 1.0, 0.0]), np.array([1.0, 2.0, 1.0]), np.ones(3, bool))
    array([ 0.5, -0.5, -1. ])
    """
    old, new = before[chosen], now[chosen]
    lost: np.ndarray = (old - new) / np.maximum(old, new)
    return lost


def possible_loss(groups: Sequence[Mapping[str, Any]], steps: int | None) -> float:
    """Share of its norm that a filter can lose in an epoch of so many steps of ProxSGD at most.

    Parameters
    ----------
    groups : sequence of mapping
        The optimizer's parameter groups; those with a gain count.
    steps : int or None
        None: another optimizer, whose steps are followed by the proximal map; all of it.
    """
    if steps is None:
        return 1.0
    rates = [float(group["lr"]) for group in groups if group.get("mu")]
    left: float = (1 - max(rates, default=0.0)) ** steps
    return 1 - left


def relative_norms(
    norms: Sequence[np.ndarray], threshold: float, scales: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """Norms of the living over the largest of their layer; the dead are 0.

    Parameters
    ----------
    norms : sequence of ndarray
        One a layer.
    threshold : float
        Largest norm of a dead filter.
    scales : sequence of ndarray, optional
        Factors that the living are multiplied by first.

    Examples
    --------
    >>> relative_norms([np.array([2.0, 1.0, 1e-7]), np.zeros(3)], 1e-6)
    [array([1. , 0.5, 0. ]), array([0., 0., 0.])]
    """
    found = []
    for number, values in enumerate(norms):
        living = np.where(values > threshold, values, 0.0)
        if scales is not None:
            living *= scales[number]
        # A layer that has died altogether has no largest one to go by.
        found.append(living / (living.max() or 1.0))
    return found


def slowest_loss(sets: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """Loss of norm that stands for all dying filters: the slow ones count.

    Parameters
    ----------
    sets : sequence of (before, now, chosen)
        As for :func:`loss_of_norm`.

    Returns
    -------
    float
        The lower quartile; 1 where no filter is dying.
    """
    losses = np.concatenate([loss_of_norm(*one) for one in sets])
    return float(np.quantile(losses, _SLOWEST)) if len(losses) else 1.0


def still_to_save(
    budget: Mapping[str, float],
    cost: CostModel,
    removed: np.ndarray,
    latency: Callable[[np.ndarray], float] | None = None,
) -> float:
    """Share of what a budget saves that is not saved yet, of the measure that is worst off.

    Parameters
    ----------
    budget : mapping of str to float
        Checked by :func:`nni_gconv.pruning.selection.cost.parse_budget`.
    cost : CostModel
        Counts MACs and parameters.
    removed : ndarray of bool, shape (classes,)
        The classes that are gone.
    latency : callable, optional
        Measures; needed for a budget of latency.

    Returns
    -------
    float
        From 1, nothing is saved, to 0, the budget is met.
    """
    shares = [0.0]
    for measure, value in budget.items():
        if measure == "latency" and latency is not None:
            dense, limit, now = 1.0, value, latency(removed)
        else:
            dense, limit = cost.dense(measure), cost.limit(measure, value)
            now = cost(measure, removed)
        if dense > limit:
            shares.append((now - limit) / (dense - limit))
    return max(shares)


@dataclass(frozen=True)
class NormSpread:
    """Whether the norms of filters fall into two heaps, the living and the dead.

    Where they do, masks hardly depend on the threshold. Norms count relative to the largest of
    their layer, whose scale means nothing in front of a norm.

    Attributes
    ----------
    dead, between, total : int
        Filters up to 1e-5, above it but below 1e-1, and all.
    """

    dead: int
    between: int
    total: int

    @classmethod
    def of(cls, layers: Sequence[np.ndarray]) -> NormSpread:
        """Count the norms of several layers.

        Examples
        --------
        >>> print(NormSpread.of([np.array([2.0, 1.5, 1e-7]), np.array([3.0, 0.01])]))
        1 of 5 filters are dead (up to 1e-05 of their layer's largest), 1 between that and 0.1
        """
        dead = between = 0
        for norms in layers:
            largest = float(norms.max())
            relative = norms / (largest if largest > _DEAD else 1.0)
            dead += int((relative <= _DEAD).sum())
            between += int(((relative > _DEAD) & (relative < _ALIVE)).sum())
        return cls(dead, between, sum(len(norms) for norms in layers))

    def __str__(self) -> str:
        return (
            f"{self.dead} of {self.total} filters are dead (up to {_DEAD:.0e} of their layer's "
            f"largest), {self.between} between that and {_ALIVE}"
        )


def norms_behind(coupling: Coupling) -> dict[str, str]:
    """Return for each layer whose output a batch norm reads the name of the norm."""
    graph, found = coupling.graph, {}
    for node in graph.nodes:
        source = node.args[0] if op_name(node) == "batch_norm" else None
        if isinstance(source, Node) and op_name(source).startswith(("conv", "linear")):
            found[graph.owner(source)] = graph.owner(node)
    return found


def per_channel(member: Member, per_filter: np.ndarray, size: int) -> np.ndarray:
    """Give the numbers of a layer's filters to the channels they make; the largest of several.

    Parameters
    ----------
    member : Member
        The layer in a coupled set.
    per_filter : ndarray, shape (filters,)
        Not below 0.
    size : int
        Channels of the set.
    """
    found = np.zeros(size)
    np.maximum.at(found, member.units, per_filter[member.rows])
    return found


def shorten_filters(group: Mapping[str, Any]) -> None:
    """Shorten filters as the group lasso asks in one step of an optimizer that knows nothing of it.

    Parameters
    ----------
    group : mapping
        A parameter group: ``params``, ``lr``, and ``mu``, ``filter_dim`` and ``normalization`` as
        in :class:`~nni_gconv.training.proxsgd.ProxSGD`. Filters lose
        ``lr * mu * gain_scale(size, normalization)`` of their norm, in place.

    Examples
    --------
    >>> filters = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> group = {"params": [filters], "lr": 0.1, "mu": 10.0, "filter_dim": 0}
    >>> shorten_filters({**group, "normalization": "none"})
    >>> filters
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    with torch.no_grad():
        for weight in group["params"]:
            filters = weight.movedim(group["filter_dim"], 0)
            scale = gain_scale(filters[0].numel(), group["normalization"])
            gain = float(group["lr"]) * group["mu"] * scale
            filters.copy_(group_soft_threshold(filters, gain))


def norm_scale(norm: Any, gamma: Tensor | None) -> np.ndarray:
    """Factor by which a batch norm with running statistics multiplies each channel, unsigned.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(2, eps=0.0)
    >>> norm.running_var = torch.tensor([4.0, 0.25])
    >>> norm_scale(norm, torch.tensor([1.0, -3.0]))
    array([0.5, 6. ])
    """
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma.detach().abs()
    values: np.ndarray = scale.cpu().numpy()
    return values


def not_negative(value: Any, where: str) -> float:
    """Check that a setting is a number from 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < float("inf"):
        raise ConfigError(f"{where}: {value!r} is not allowed (a number from 0)")
    return float(value)
