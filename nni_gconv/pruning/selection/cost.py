"""What a network costs with some of its channels gone, before anything is cut.

Parameters and MACs of a layer are products of the widths that its neighbours leave it, so the cost
of any set of removed channels is a few sums over the traced graph: microseconds, not a rebuild.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from nni_gconv.graph import Coupling, Graph, op_name, shape_of, weight_source
from nni_gconv.profiling import Counts, count
from nni_gconv.pruning.selection.exact import Product, Width


class CostModel:
    """Parameters and MACs of a model as a function of the classes removed.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    dummy_input : Tensor, tuple or dict
        One example; the first dimension is the batch, MACs are per sample.
    coupling : Coupling
        Traced from the same model.
    counts : Counts, optional
        Of the dense model, where they are known.

    Attributes
    ----------
    params, macs : int
        Of the dense model.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        coupling: Coupling,
        counts: Counts | None = None,
    ) -> None:
        dense = count(model, dummy_input) if counts is None else counts
        self.params, self.macs = dense.params, dense.macs
        self.coupling = coupling
        graph, channels = coupling.graph, coupling.channels
        self._axes = list(channels.axes)
        self._index = {key: i for i, key in enumerate(self._axes)}
        labels = [channels.of(channels.axes[key].labels) for key in self._axes]
        self._labels = labels
        self._classes = np.concatenate(labels) if labels else np.zeros(0, np.int64)
        self._starts = np.cumsum([0, *[len(x) for x in labels]])[:-1]
        self._grouped = {
            r.weight: (channels.of(r.labels), r.groups) for r in channels.reads if r.groups > 1
        }
        batch = _batch(graph.inputs)
        positions: dict[str, int] = {}
        for node in graph.nodes:
            name, per_sample = _positions(node, graph, batch)
            if name is not None:
                first = graph.aliases[name][0]
                positions[first] = positions.get(first, 0) + per_sample
        self._terms = []
        seen = set()
        for name, parameter in model.named_parameters():
            first = graph.aliases[name][0]
            if first not in seen:
                seen.add(first)
                self._terms.append((first, tuple(parameter.shape), positions.get(first, 0)))
        # What masks make group convolutions of costs less from the start: not part of "dense".
        self._divisors: Mapping[str, int] = {}
        everything = self._sums(np.zeros(channels.count, bool))
        self._fixed = {"params": self.params - everything[0], "macs": self.macs - everything[1]}
        self._divisors = coupling.groups

    def __call__(self, measure: str, removed: np.ndarray) -> float:
        """Return the cost in ``"params"`` or ``"macs"`` with these classes gone."""
        params, macs = self._sums(removed)
        return self._fixed[measure] + (params if measure == "params" else macs)

    def dense(self, measure: str) -> float:
        """Return the dense model's cost."""
        return float(self.params if measure == "params" else self.macs)

    def limit(self, measure: str, value: float) -> float:
        """Turn a budget's value into a count: up to 1 it is a fraction of dense."""
        return value * self.dense(measure) if value <= 1 else value

    def ramped(self, budget: Mapping[str, float], share: float) -> dict[str, float]:
        """Return the budget that asks for a share of what `budget` would save."""
        if share == 1:
            return dict(budget)
        dense = {m: self.dense(m) if value > 1 else 1.0 for m, value in budget.items()}
        return {m: dense[m] - (dense[m] - value) * share for m, value in budget.items()}

    def products(self, measure: str, sets: Sequence[np.ndarray]) -> list[Product] | None:
        """Say what layers cost as products of widths.

        Parameters
        ----------
        measure : {"params", "macs"}
        sets : sequence of ndarray of int
            Classes of each set; what is in none of them stays.

        Returns
        -------
        list of Product or None
            None where a layer's cost is no product of two widths. Where a width holds some of a
            set's channels more often than others they are counted by their mean.
        """
        found = [Product(1.0, Width(self._fixed[measure]), Width(1.0))]
        for name, shape, positions in self._terms:
            factor = 1.0 if measure == "params" else float(positions)
            factor /= self._divisors.get(name, 1)
            widths = []
            for dim, size in enumerate(shape):
                if dim == 1 and name in self._grouped:
                    widths.append(_width(*self._grouped[name], sets, self.coupling.channels.count))
                elif (name, dim) in self._index:
                    labels = self._labels[self._index[name, dim]]
                    widths.append(_width(labels, 1, sets, self.coupling.channels.count))
                else:
                    factor *= size
            if len(widths) > 2:
                return None
            one = Width(1.0)
            first, second = (*widths, one, one)[:2]
            found.append(Product(factor, first, second))
        return found

    def _sums(self, removed: np.ndarray) -> tuple[int, int]:
        stays = ~removed[self._classes]
        kept = np.add.reduceat(stays, self._starts) if len(self._starts) else np.zeros(0)
        params = macs = 0
        for name, shape, positions in self._terms:
            sizes = list(shape)
            for dim in range(len(shape)):
                if (name, dim) in self._index:
                    sizes[dim] = int(kept[self._index[name, dim]])
            if name in self._grouped:
                classes, groups = self._grouped[name]
                sizes[1] = int((~removed[classes]).sum()) // groups
            numel = math.prod(sizes) // self._divisors.get(name, 1)
            params += numel
            macs += numel * positions
        return params, macs


def _width(labels: np.ndarray, groups: int, sets: Sequence[np.ndarray], classes: int) -> Width:
    """Count how often a width holds the channels of each set."""
    often = np.bincount(labels, minlength=classes) / groups
    times = tuple((s, float(often[own].mean())) for s, own in enumerate(sets) if often[own].any())
    held = sum(a * len(sets[s]) for s, a in times)
    return Width(float(often.sum() - held), times)


def _batch(inputs: tuple[Node, ...]) -> int:
    shape = shape_of(inputs[0]) if inputs else ()
    return shape[0] if shape else 1


def _positions(node: Node, graph: Graph, batch: int) -> tuple[str | None, int]:
    """Return the weight a layer multiplies with and at how many positions of one sample."""
    name = op_name(node) if node.op == "call_function" else ""
    if not (name.startswith("conv") or name == "linear"):
        return None, 0
    weight = node.args[1]
    source = weight_source(graph, weight)
    if source is None or source in graph.buffers:
        return None, 0
    out, inside = shape_of(node), shape_of(node.args[0])
    if name == "linear":
        places = math.prod(out[:-1])
    else:
        spatial = len(shape_of(weight)) - 2
        over = inside if "transpose" in name else out
        places = math.prod(over[-spatial:]) * (out[0] if len(out) > spatial + 1 else 1)
    return source, places // max(batch, 1)
