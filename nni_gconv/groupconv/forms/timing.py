"""Which form of a layer is the quickest here, by running them in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.groupconv.forms.form import Form, forms_of, in_form
from nni_gconv.groupconv.gather import gathers_of, unwrapped
from nni_gconv.profiling import clock_for, cpu_threads, in_turn, measuring, milliseconds

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
        self._known: dict[tuple[Any, ...], list[tuple[TimedForm, ...]]] = {}

    def times(
        self, unit: nn.Module, shape: Sequence[int], layouts: Sequence[bool] = (False, True)
    ) -> tuple[TimedForm, ...]:
        """Time every form of a layer in every layout, the quickest first.

        Parameters
        ----------
        unit : nn.Module
            A layer or one between gathers; one without forms is timed as it is.
        shape : sequence of int
            Of its input, with the batch.
        layouts : sequence of bool, default (False, True)
            Contiguous, channels last, or both.
        """
        return self.race([unit], shape, layouts)[0]

    def race(
        self,
        units: Sequence[nn.Module],
        shape: Sequence[int],
        layouts: Sequence[bool] = (False, True),
    ) -> list[tuple[TimedForm, ...]]:
        """Time layers that could stand in one place, all in turn; see :meth:`times`."""
        key = (tuple(map(_kind_of, units)), tuple(shape), tuple(layouts))
        if key not in self._known:
            self._known[key] = self._measure(units, shape, layouts)
        return self._known[key]

    def _measure(
        self, units: Sequence[nn.Module], shape: Sequence[int], layouts: Sequence[bool]
    ) -> list[tuple[TimedForm, ...]]:
        weight: Any = unwrapped(units[0]).weight
        example = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
        example = example.to(weight.device, weight.dtype)
        made, calls, clock = [], [], clock_for(self._threads)
        for number, unit in enumerate(units):
            for form, last, model in _in_forms(unit, layouts):
                made.append((number, form, last, model))
                calls.append(partial(milliseconds, model, _laid_out(example, last), clock))
        owners = [number for number, *_ in made]
        with measuring(*(entry[3] for entry in made)), cpu_threads(self._threads):
            best = self._race(calls, owners)
        rows = [
            TimedForm(form, last, ms) for (_, form, last, _), ms in zip(made, best, strict=True)
        ]
        return [
            tuple(
                sorted(
                    (row for row, owner in zip(rows, owners, strict=True) if owner == number),
                    key=lambda row: row.milliseconds,
                )
            )
            for number in range(len(units))
        ]

    def _race(self, calls: Sequence[Any], owners: Sequence[int]) -> list[float]:
        """Return the fastest run of each call; what is far behind its owner's best runs no more."""
        named = {str(i): call for i, call in enumerate(calls)}
        first = in_turn(named, warmup=1, min_runs=_FIRST_RUNS, min_seconds=0, max_seconds=0)
        best = [min(first[str(i)]) for i in range(len(calls))]
        limits = {
            owner: _HOPELESS * min(ms for ms, o in zip(best, owners, strict=True) if o == owner)
            for owner in owners
        }
        near = {n: call for n, call in named.items() if best[int(n)] <= limits[owners[int(n)]]}
        again = in_turn(near, warmup=0, **self._options)  # type: ignore[arg-type]
        for name, times in again.items():
            best[int(name)] = min(best[int(name)], *times)
        return best


def _kind_of(unit: nn.Module) -> tuple[Any, ...]:
    """What the time of a layer depends on, beside its input."""
    layer: Any = unwrapped(unit)
    kind = (type(layer), layer.extra_repr(), layer.weight.dtype, layer.weight.device)
    return (*kind, tuple(gathers_of(unit)), forms_of(unit))


def _in_forms(unit: nn.Module, layouts: Sequence[bool]) -> Iterator[tuple[Form, bool, nn.Module]]:
    forms = forms_of(unit)
    for last in layouts if forms else ():
        for form in forms:
            # The output of packed weights is channels last whatever the input is.
            if last or form.kind != "packed":
                yield form, last, in_form(unit, form, channels_last=last)
    if not forms:
        layer: Any = unwrapped(unit)
        yield Form("plain", layer.groups), False, unit


def _laid_out(example: Tensor, channels_last: bool) -> Tensor:
    order = torch.channels_last if channels_last else torch.contiguous_format
    return example.contiguous(memory_format=order) if example.dim() == 4 else example
