"""Whole networks timed in turn, and which of them is taken.

The quickest of many that are alike is the one that was lucky. So what leads after a first look is
timed once more, in fresh rounds beside the network that nothing had to be chosen for: its layers
dense, its norms folded. The leader is taken only where it is surely quicker than that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nni_gconv.inference.norms import foldable_norms
from nni_gconv.inference.plan import FormPlan, apply_forms
from nni_gconv.inference.report import TimedNetwork
from nni_gconv.profiling import LatencyComparison, batch_of, compare_latency

AS_IT_WAS = "as it was"
GIVEN = "given dense network"
#: Names of the two memory formats, by whether channels come last.
MEMORY = {False: "contiguous", True: "channels last"}
#: Share of the time that all networks get together; the rest is for those that are left.
_FIRST = 0.6
#: Seconds of each network at least: a look tells which are ahead, an interval needs more rounds.
_LOOK, _LAST = 0.1, 0.3


@dataclass(frozen=True)
class Judge:
    """Times networks of one model.

    Attributes
    ----------
    model : nn.Module
        The network as it was.
    dummy_input : Tensor, tuple or dict
        What it is called on.
    threads : int
        CPU threads.
    max_seconds : float
        For all that is timed.
    """

    model: nn.Module
    dummy_input: Any
    threads: int
    max_seconds: float

    def choose(
        self,
        plans: Mapping[str, FormPlan],
        plain: Iterable[str],
        dense: nn.Module | None = None,
    ) -> tuple[tuple[TimedNetwork, ...], str]:
        """Choose one of several plans.

        Parameters
        ----------
        plans : mapping of str to FormPlan
            By name; the first is the network as it was.
        plain : iterable of str
            Plans that stand for the dense network with its norms folded; the quicker of them is
            taken unless something is surely quicker. Of none the network as it was.
        dense : nn.Module, optional
            Timed beside, with norms folded.

        Returns
        -------
        (tuple of TimedNetwork, str)
            The first is the network as it was; and the name of what was taken, which took no longer
            than that.
        """
        models = {name: apply_forms(self.model, plan) for name, plan in plans.items()}
        others = {} if dense is None else self._folded(dense)
        found = self._timed({**models, **others}, _FIRST, _LOOK)
        networks = _networks(found)
        leader = min(plans, key=found.ratios.__getitem__)
        base = min(plain, key=found.ratios.__getitem__, default=AS_IT_WAS)
        final = list(dict.fromkeys([AS_IT_WAS, base, leader]))
        if len(final) > 1:
            found = self._timed({name: models[name] for name in final}, 1 - _FIRST, _LAST)
            networks |= _networks(found)
        if found.ratios[base] > 1:
            base = AS_IT_WAS
        high = found.ratio_to(leader, base)[2]
        taken = leader if high < 1 and found.ratios[leader] <= 1 else base
        return tuple(networks.values()), taken

    def _timed(
        self, models: Mapping[str, nn.Module], share: float, seconds: float
    ) -> LatencyComparison:
        return compare_latency(
            models,
            self.dummy_input,
            batch_size=batch_of(self.dummy_input),
            threads=self.threads,
            min_runs=15,
            min_seconds=seconds,
            max_seconds=share * self.max_seconds,
        )

    def _folded(self, dense: nn.Module) -> dict[str, nn.Module]:
        folded = FormPlan(folded=foldable_norms(dense, self.dummy_input))
        return {
            f"{GIVEN}, {memory}": apply_forms(
                dense, dataclasses.replace(folded, channels_last=last)
            )
            for last, memory in MEMORY.items()
        }


def _networks(found: LatencyComparison) -> dict[str, TimedNetwork]:
    base = found.latencies[AS_IT_WAS].median_ms
    return {
        name: TimedNetwork(name, base * found.ratios[name], found.ratios[name], *ends)
        for name, ends in found.ratio_intervals.items()
    }
