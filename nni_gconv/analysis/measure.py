"""Sensitivity analysis: silence more and more channels of one coupled set, and look at accuracy."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nni_gconv.analysis.criteria import ranked_by
from nni_gconv.analysis.curves import TOLERANCE, Curve, Point, Score, Together, layer_ratios
from nni_gconv.analysis.result import Sensitivity
from nni_gconv.analysis.score_log import ScoreFile
from nni_gconv.analysis.scoring import Batches, Evaluate, scorer
from nni_gconv.analysis.zeroing import silenced
from nni_gconv.artefact import weights_digest
from nni_gconv.config_list import LayerConfig
from nni_gconv.errors import ConfigError
from nni_gconv.pruning import ChannelPruner, take, taken_channels
from nni_gconv.training.data import Loaders

#: 0, 0.05, ..., 0.95
RATIOS = tuple(step / 20 for step in range(20))
#: The dense network's place among the scores of sets.
_DENSE = -1
#: Two measurements of one network on the same images differ by rounding only.
_SAME_ACCURACY, _SAME_LOSS = 1e-3, 1e-4


def sensitivity(
    model: nn.Module,
    dummy_input: Any,
    evaluate: Evaluate | Loaders | Batches,
    config_list: list[dict[str, Any]] | None = None,
    *,
    criterion: str = "l1",
    ratios: Sequence[float] = RATIOS,
    tolerance: float = TOLERANCE,
    stop_below: float | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Measure how much accuracy a trained network loses with the channels of each coupled set.

    One set at a time loses channels, the least important first, while all others stay whole; the
    network is not fine-tuned. Removed channels are zeroed, so each score is that of the network
    which :class:`nni_gconv.ModelSpeedup` would make.

    Parameters
    ----------
    model : nn.Module
        A trained network. It is changed in place while it is measured, and left as it was.
    dummy_input : Tensor, tuple, dict or None
        Example arguments of the forward; None tries common image sizes.
    evaluate : callable, Loaders or iterable of (images, labels)
        Held-out images to score on (the ``val`` part of loaders), or a function that takes the
        model and returns ``{"accuracy": fraction of 1, "loss": mean}``.
    config_list : list of dict, optional
        NNI's config_list to select layers; ``min_channels`` and ``round_to`` count, ratios do not.
        Default: all convolutions and linear layers.
    criterion : {"l1", "l2", "fpgm", "gamma", "random"}, default "l1"
        What goes first: filters of small norm, filters near the geometric median, channels of
        small batch norm scale, or what a seeded draw says.
    ratios : sequence of float
        Shares of a set's channels to remove, from 0 to 1; default 0, 0.05, ..., 0.95. A larger
        share removes what a smaller one does, and more.
    tolerance : float, default 0.001
        A set is harmless up to the first ratio at which it loses this much accuracy, a fraction
        of 1; ``together`` of the result removes so much of all sets.
    stop_below : float, optional
        End a curve at the first accuracy below this, for example that of chance.
    options : mapping, optional
        Further arguments of the criterion's pruner: ``{"distance": "l1"}``,
        ``{"coupling": "max"}``.
    seed : int, default 0
        Of the random order.
    output : str or Path, optional
        Folder for ``scores.jsonl``, to which every score is added as it is measured: a run that
        was killed goes on from there. A file of other weights, layers or images is refused.
    progress : callable, optional
        Called with the number of points done and of all points.

    Returns
    -------
    Sensitivity
        Curves, the ratios read off them, tables and files.

    Raises
    ------
    ConfigError
        An argument is wrong, nothing can be pruned, or `output` holds scores of something else.

    References
    ----------
    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, https://arxiv.org/abs/1608.08710,
    prunes each layer by such curves.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    >>> batch = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    >>> found = sensitivity(net, torch.zeros(1, 1, 8, 8), [batch], ratios=[0, 0.5])
    >>> [(curve.name, [point.removed for point in curve.points]) for curve in found.curves]
    [('0', [0, 2])]
    """
    check_points(ratios, tolerance, stop_below)
    score = scorer(model, evaluate)
    pruner, section = ranked_by(
        criterion, model, dummy_input, config_list, options=options, seed=seed
    )
    orders = _Orders(pruner)
    subject = {
        "weights": weights_digest({k: v.cpu() for k, v in model.state_dict().items()}),
        "criterion": criterion,
        "order of channels": orders.digest(),
    }
    file = None if output is None else Path(output).expanduser() / "scores.jsonl"
    with ScoreFile(file, subject) as scores:
        dense = _dense(scores, score())

        def score_at(number: int, channels: np.ndarray) -> Score:
            known = scores.get(number, len(channels)) if len(channels) else dense
            if known is None:
                with silenced(model, pruner.coupling, orders.classes({number: channels})):
                    known = score()
                scores.add(number, len(channels), known)
            return known

        curves = []
        for number, coupled in enumerate(pruner.sets):
            points: list[Point] = []
            for place, ratio in enumerate(ratios, 1):
                channels = orders.gone(number, ratio)
                found = score_at(number, channels)
                points.append(Point(**asdict(found), ratio=ratio, removed=len(channels)))
                stop = stop_below is not None and found.accuracy < stop_below
                if progress is not None:
                    done = len(ratios) if stop else place
                    progress(number * len(ratios) + done, len(pruner.sets) * len(ratios))
                if stop:
                    break
            layers = tuple(dict.fromkeys(member.module for member in coupled.members))
            curves.append(Curve(layers, coupled.size, tuple(points)))
    harmless = layer_ratios(curves, dense, tolerance)
    removed = orders.classes(
        {
            number: orders.gone(number, min(harmless[layer] for layer in curve.layers))
            for number, curve in enumerate(curves)
        }
    )
    with silenced(model, pruner.coupling, removed):
        both = score()
    share = {m: pruner.cost(m, removed) / pruner.cost.dense(m) for m in ("params", "macs")}
    return Sensitivity(
        criterion=criterion,
        dense=dense,
        curves=tuple(curves),
        together=Together(
            **asdict(both),
            tolerance=tolerance,
            params_ratio=share["params"],
            macs_ratio=share["macs"],
        ),
        skipped=dict(pruner.skipped),
        prune=section,
        keep={name: _lasting(layer) for name, layer in pruner.layers.items()},
    )


class _Orders:
    """The channels of every set of a pruner in the order they go, whatever its goals are."""

    def __init__(self, pruner: ChannelPruner) -> None:
        self.pruner = pruner
        self.requests = [
            replace(request, ratio=None, threshold=None, low=0.0, high=1.0, group=None)
            for request in pruner.requests()
        ]

    def gone(self, number: int, ratio: float) -> np.ndarray:
        """Channels of a set that go at a ratio: those a pruner would take for it."""
        request = replace(self.requests[number], ratio=ratio)
        return taken_channels(request, take([request])[0])

    def classes(self, channels: Mapping[int, np.ndarray]) -> np.ndarray:
        """Mark these channels of these sets among all classes."""
        removed = self.pruner.coupling.empty()
        for number, gone in channels.items():
            removed[self.pruner.sets[number].classes[gone]] = True
        return removed

    def digest(self) -> str:
        """Return the SHA-256 of the layers of each set and the order of its channels."""
        content = [
            [[member.module for member in coupled.members], [step.tolist() for step in r.steps]]
            for coupled, r in zip(self.pruner.sets, self.requests, strict=True)
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_points(
    ratios: Sequence[float], tolerance: float = TOLERANCE, stop_below: float | None = None
) -> None:
    """Refuse ratios, a tolerance or a limit that mean nothing."""
    if not len(ratios) or any(not 0 <= ratio <= 1 for ratio in ratios):
        raise ConfigError(f"ratios: {list(ratios)!r:.60} is not allowed (numbers from 0 to 1)")
    if any(a >= b for a, b in itertools.pairwise(ratios)):
        raise ConfigError(f"ratios: {list(ratios)!r:.60} do not ascend")
    for name, value in (("tolerance", tolerance), ("stop_below", stop_below)):
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{name}: {value!r} is not allowed (a fraction of 1)")


def _lasting(layer: LayerConfig) -> dict[str, Any]:
    """Return what limits and ties the channels of a layer besides a goal, for a config_list."""
    kept = {
        key: getattr(layer, key)
        for key in ("min_channels", "round_to", "internal_metric_block", "dependency_group_id")
        if getattr(layer, key) != getattr(LayerConfig(), key)
    }
    if layer.align is not None:
        kept["align"] = {"module_name": layer.align, "target_name": "weight", "dims": [0]}
    return kept


def _dense(scores: ScoreFile, measured: Score) -> Score:
    """Keep the dense network's score, or hold it against the one that is kept."""
    known = scores.get(_DENSE, 0)
    if known is None:
        scores.add(_DENSE, 0, measured)
        return measured
    same = math.isclose(known.accuracy, measured.accuracy, abs_tol=_SAME_ACCURACY)
    if not same or not math.isclose(known.loss, measured.loss, rel_tol=_SAME_LOSS):
        raise ConfigError(
            f"{scores.path} holds scores of other images or by another measure: there the network "
            f"had accuracy {known.accuracy:.4f} and loss {known.loss:.4f}, now it has "
            f"{measured.accuracy:.4f} and {measured.loss:.4f}; choose another output, or delete it"
        )
    return known
