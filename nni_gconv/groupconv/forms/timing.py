"""Which form of a layer is the quickest here, by running them in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.groupconv.forms.form import Form, forms_of, in_form
from nni_gconv.groupconv.gather import gathers_of, unwrapped
from nni_gconv.profiling import cpu_threads, in_turn, measuring, milliseconds

#: After a first look what takes this many times the quickest is timed no more.
_HOPELESS = 1.4
_FIRST_RUNS = 3


@dataclass(frozen=True)
class TimedForm:
    """A form of one layer and its time.

    Attributes
    ----------
    form : Form
        The form.
    channels_last : bool
        Memory format of input, weights and output.
    milliseconds : float
        Fastest run of the whole batch: others are longer for what else the machine does.
    """

    form: Form
    channels_last: bool
    milliseconds: float


class FormTimer:
    """Times the forms of layers on inputs of given shapes; equal layers once.

    Parameters
    ----------
    threads : int, default 1
        CPU threads.
    min_runs : int, default 5
        Of each form that is not far behind.
    min_seconds : float, default 0.03
        The same.
    max_seconds : float, default 2
        For all forms of a layer that are not far behind; three runs of each are timed all the same.

    Examples
    --------
    >>> timer = FormTimer(min_runs=1, min_seconds=0)
    >>> rows = timer.times(nn.Conv2d(8, 8, 1, groups=2), (1, 8, 4, 4), (False,))
    >>> {row.form.kind for row in rows} >= {"plain", "split", "matmul"}
    True
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        min_runs: int = 5,
        min_seconds: float = 0.03,
        max_seconds: float = 2.0,
    ) -> None:
        self._threads = threads
        self._options = {
            "min_runs": min_runs,
            "min_seconds": min_seconds,
            "max_seconds": max_seconds,
        }
        self._known: dict[tuple[Any, ...], tuple[TimedForm, ...]] = {}

    def times(
        self,
        unit: nn.Module,
        shape: Sequence[int],
        layouts: Sequence[bool] = (False, True),
        *,
        forms: Sequence[Form] | None = None,
    ) -> tuple[TimedForm, ...]:
        """Time every form of a layer in every layout, the quickest first.

        Parameters
        ----------
        unit : nn.Module
            A layer or one between gathers.
        shape : sequence of int
            Of its input, with the batch.
        layouts : sequence of bool, default (False, True)
            Contiguous, channels last, or both.
        forms : sequence of Form, optional
            Default: all that the layer allows.
        """
        forms = tuple(forms_of(unit) if forms is None else forms)
        layer = unwrapped(unit)
        kind = (type(layer), layer.extra_repr(), layer.weight.dtype, layer.weight.device)
        key = (*kind, tuple(shape), tuple(gathers_of(unit)), tuple(layouts), forms)
        if key not in self._known:
            self._known[key] = self._measure(unit, shape, layouts, forms)
        return self._known[key]

    def _measure(
        self,
        unit: nn.Module,
        shape: Sequence[int],
        layouts: Sequence[bool],
        forms: Sequence[Form],
    ) -> tuple[TimedForm, ...]:
        weight: Any = unwrapped(unit).weight
        example = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
        example = example.to(weight.device, weight.dtype)
        made, calls = {}, {}
        for last in layouts:
            given = _laid_out(example, last)
            for form in forms:
                if form.kind == "packed" and not last:
                    continue  # its output is channels last whatever the input is
                model = in_form(unit, form, channels_last=last)
                made[str(form), last] = (form, last, model)
                calls[f"{form} {last}"] = partial(milliseconds, model, given)
        models = [entry[2] for entry in made.values()]
        with measuring(*models), cpu_threads(self._threads):
            best = self._race(calls)
        return tuple(
            sorted(
                (TimedForm(f, last, best[f"{f} {last}"]) for f, last, _ in made.values()),
                key=lambda row: row.milliseconds,
            )
        )

    def _race(self, calls: Mapping[str, Any]) -> dict[str, float]:
        first = in_turn(calls, warmup=1, min_runs=_FIRST_RUNS, min_seconds=0, max_seconds=0)
        best = {name: min(times) for name, times in first.items()}
        limit = _HOPELESS * min(best.values())
        near = {name: call for name, call in calls.items() if best[name] <= limit}
        again = in_turn(near, warmup=0, **self._options)  # type: ignore[arg-type]
        return {**best, **{n: min(best[n], *times) for n, times in again.items()}}


def _laid_out(example: Tensor, channels_last: bool) -> Tensor:
    order = torch.channels_last if channels_last else torch.contiguous_format
    return example.contiguous(memory_format=order) if example.dim() == 4 else example
