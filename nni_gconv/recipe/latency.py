"""Milliseconds of a trial's networks: timed in turn, each architecture once an experiment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_gconv import compat
from nni_gconv.artefact import plan_of
from nni_gconv.files import links_in, lock_of, write_json
from nni_gconv.inference import (
    FormPlan,
    apply_forms,
    built_by,
    find_forms,
    foldable_norms,
    origin_of,
    work_of,
)
from nni_gconv.profiling import LatencySettings, compare_latency, machine_of, with_batch

#: Says what is being measured.
Say = Callable[[str], None]


@dataclass(frozen=True)
class TimingCache:
    """Measurements that trials of one experiment share, by what was measured and where.

    Attributes
    ----------
    folder : Path or None
        Where they lie; None: in this process alone.
    """

    folder: Path | None
    _known: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of_experiment(cls) -> TimingCache:
        """Return that of the NNI experiment which this process is a trial of, if it is one."""
        root = compat.experiment_folder()
        return cls(None if root is None else root / "nni_gconv_latency")

    def once(self, key: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """Return what `measure` does, or what it gave the first trial that asked for the same.

        What is read back is data alone; a file that cannot be read is measured anew.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if self.folder is None:
            if digest not in self._known:
                self._known[digest] = measure()
            return self._known[digest]
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.is_symlink() or links_in(self.folder):
            return measure()
        file = self.folder / f"{digest[:24]}.json"
        with lock_of(self.folder / ".lock"):  # nor do two trials time at once
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                if found["key"] == json.loads(json.dumps(key)):
                    return found["value"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                pass
            value = json.loads(json.dumps(measure()))
            write_json(file, {"key": key, "value": value})
            return value


def quickest_forms(
    model: nn.Module,
    dense: nn.Module,
    example: torch.Tensor,
    settings: LatencySettings,
    cache: TimingCache,
    say: Say,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the quickest equal form of a network; forms are looked for once an architecture.

    Forms have to be surely quicker than the dense network with its norms folded in the memory
    format that :func:`time_networks` compares with.

    Returns
    -------
    (nn.Module, dict)
        As of :func:`nni_gconv.optimize`, and the report as plain values.
    """
    channels_last = _channels_last(dense, example, settings, cache, say)

    def measure() -> dict[str, Any]:
        say(
            f"looking for the quickest form of every layer: batch {len(example)}, "
            f"{settings.threads} threads"
        )
        plan, report = find_forms(
            model, example, threads=settings.threads, max_seconds=settings.max_seconds,
            channels_last=channels_last,
        )  # fmt: skip
        return {"forms": plan.to_dict(), "report": report.to_dict()}

    key = {**_where(model, example, settings), "forms of": plan_of(model), "last": channels_last}
    found = cache.once(key, measure)
    fast, difference = built_by(model, FormPlan.from_dict(found["forms"]), example)
    return fast, {**found["report"], "difference": difference}


def time_networks(
    small: nn.Module,
    dense: nn.Module,
    example: torch.Tensor,
    settings: LatencySettings,
    cache: TimingCache,
    say: Say,
) -> list[dict[str, Any]]:
    """Time a small network in turn with the dense one, at every batch size.

    Parameters
    ----------
    small, dense : nn.Module
        If `small` comes from :func:`nni_gconv.optimize`, `dense` has its norms folded too and the
        quicker memory format, which is looked for once an experiment. Forms are timed in eager
        mode; other back-ends get the network as it was.
    example : Tensor
        One image.
    settings : LatencySettings
        The recipe's ``report.latency``.
    cache : TimingCache
        Where measurements are shared.
    say : callable
        Is told what is measured, and where the small network is the slower one.

    Returns
    -------
    list of dict
        A row for each back-end and batch size; ``small_ms`` is ``ratio * dense_ms``, and ``low`` to
        ``high`` the 95 % interval of ``ratio``. Networks that run the same operators, as where
        every layer is a dense one again, share one timing: their ratio is 1.
    """
    origin = origin_of(small)
    key: dict[str, Any] = {
        **_where(dense, example, settings),
        "dense": plan_of(dense),
        "small": plan_of(small if origin is None else origin.model),
    }
    last: dict[int, bool] = {}
    if origin is not None:
        for batch in settings.batch_sizes:
            images = with_batch(example, batch)
            last[batch] = _channels_last(dense, images, settings, cache, say)
        key["forms"] = {**origin.plan.to_dict(), "measured": None}
        key["last"] = [*last.values()]

    def pair(backend: str, batch: int) -> dict[str, nn.Module]:
        if origin is None:
            return {"dense": dense, "small": small}
        if backend != "eager":
            return {"dense": dense, "small": origin.model}
        (reference,) = _folded(dense, with_batch(example, batch), last[batch])
        return {f"dense, norms folded{', channels last' * last[batch]}": reference, "small": small}

    def measure() -> list[dict[str, Any]]:
        return [
            _row(pair(backend, batch), example, batch, backend, settings, say)
            for backend in settings.backends
            for batch in settings.batch_sizes
        ]

    rows: list[dict[str, Any]] = cache.once(key, measure)
    for row in rows:
        if row["low"] > 1:
            say(
                f"{row['backend']}, batch {row['batch_size']}: the small network takes "
                f"{row['ratio']:.2f} times as long as the dense one. Kernels like multiples: "
                "round_to: 16 in the config_list, or auto; groups: export: {optimize: true}"
            )
    return rows


def _channels_last(
    dense: nn.Module,
    images: torch.Tensor,
    settings: LatencySettings,
    cache: TimingCache,
    say: Say,
) -> bool:
    """Tell whether the dense network with its norms folded is quicker with its channels last.

    It is measured once: trials that came to different answers would compare their networks with
    different ones.
    """

    def measure() -> bool:
        seconds = settings.max_seconds / 4
        say(f"timing the dense network in both memory formats: batch {len(images)}")
        models = dict(zip(("first", "last"), _folded(dense, images, False, True), strict=True))
        options = {**settings.options(), "max_seconds": seconds}
        return compare_latency(models, images, batch_size=len(images), **options).ratios["last"] < 1

    key = {**_where(dense, images, settings), "memory format of": plan_of(dense)}
    return bool(cache.once(key, measure))


def _folded(dense: nn.Module, images: torch.Tensor, *channels_last: bool) -> list[nn.Module]:
    """Build the dense network with its norms folded, in these memory formats."""
    plan = FormPlan(folded=foldable_norms(dense, images))
    return [
        apply_forms(dense, dataclasses.replace(plan, channels_last=last)) for last in channels_last
    ]


def _row(
    models: Mapping[str, nn.Module],
    example: torch.Tensor,
    batch: int,
    backend: str,
    settings: LatencySettings,
    say: Say,
) -> dict[str, Any]:
    seconds = settings.max_seconds / (len(settings.batch_sizes) * len(settings.backends))
    say(
        f"timing the small network in turn with the dense one: {backend}, batch {batch}, "
        f"threads {settings.threads}, {example.device}, up to {seconds:.0f} s"
    )
    images = with_batch(example, batch)
    reference, _ = models
    if len({work_of(model, images) for model in models.values()}) == 1:
        models = {reference: models[reference]}
    options = {**settings.options(), "max_seconds": seconds, "backend": backend}
    found = compare_latency(models, images, batch_size=batch, **options)
    ratio, low, high = found.ratio_to(list(models)[-1], reference)
    timed = found.latencies[reference]
    return {
        "batch_size": batch,
        "threads": settings.threads,
        "device": timed.device,
        "backend": backend,
        "reference": reference,
        "dense_ms": timed.median_ms,
        # Of the ratio, which is of neighbouring runs: two medians would say something else.
        "small_ms": timed.median_ms * ratio,
        "ratio": ratio,
        "low": low,
        "high": high,
        "runs": timed.runs,
    }


def _where(model: nn.Module, example: torch.Tensor, settings: LatencySettings) -> dict[str, Any]:
    return {
        "machine": machine_of(example.device, threads=settings.threads),
        "class": type(model).__qualname__,
        "input": list(example.shape),
        "settings": settings.model_dump(mode="json"),
    }
