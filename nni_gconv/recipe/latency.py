"""Milliseconds of a trial's networks: timed in turn, each architecture once an experiment."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_gconv import compat
from nni_gconv.artefact import plan_of
from nni_gconv.files import links_in, lock_of, write_json
from nni_gconv.inference import (
    FormPlan,
    built_by,
    find_forms,
    fold_batch_norms,
    origin_of,
)
from nni_gconv.profiling import LatencySettings, compare_latency, machine_of

#: Says what is being measured.
Say = Callable[[str], None]


@dataclass(frozen=True)
class TimingCache:
    """Measurements that trials of one experiment share, by what was measured and where.

    Attributes
    ----------
    folder : Path or None
        Where they lie; None: nothing is shared.
    """

    folder: Path | None

    @classmethod
    def of_experiment(cls) -> TimingCache:
        """Return that of the NNI experiment which this process is a trial of, if it is one."""
        root = compat.experiment_folder()
        return cls(None if root is None else root / "nni_gconv_latency")

    def once(self, key: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """Return what `measure` does, or what it gave the first trial that asked for the same.

        What is read back is data alone; a file that cannot be read is measured anew.
        """
        if self.folder is None:
            return measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.is_symlink() or links_in(self.folder):
            return measure()
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
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
    model: nn.Module, example: Any, settings: LatencySettings, cache: TimingCache, say: Say
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the quickest equal form of a network; forms are looked for once an architecture.

    Returns
    -------
    (nn.Module, dict)
        As of :func:`nni_gconv.optimize`, and the report as plain values.
    """

    def measure() -> dict[str, Any]:
        say(
            f"looking for the quickest form of every layer: batch {len(example)}, "
            f"{settings.threads} threads"
        )
        plan, report = find_forms(
            model, example, threads=settings.threads, max_seconds=settings.max_seconds
        )
        return {"forms": plan.to_dict(), "report": report.to_dict()}

    key = {**_where(model, example, settings), "forms of": plan_of(model)}
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
        quicker memory format. Forms are timed in eager mode; other back-ends get the network as it
        was.
    example : Tensor
        One image.
    settings : LatencySettings
        The recipe's ``report.latency``.
    cache : TimingCache
        Where measurements are shared.
    say : callable
        Is told what is measured.

    Returns
    -------
    list of dict
        A row for each back-end and batch size; ``small_ms`` is ``ratio * dense_ms``, and ``low`` to
        ``high`` the 95 % interval of ``ratio``.
    """
    origin = origin_of(small)
    key: dict[str, Any] = {
        **_where(dense, example, settings),
        "dense": plan_of(dense),
        "small": plan_of(small if origin is None else origin.model),
    }
    if origin is not None:
        key["forms"] = {**origin.plan.to_dict(), "measured": None}

    def measure() -> list[dict[str, Any]]:
        pairs = {backend: _pair(small, dense, example, backend) for backend in settings.backends}
        return [
            _row(pairs[backend], example, batch, backend, settings, say)
            for backend in settings.backends
            for batch in settings.batch_sizes
        ]

    return cache.once(key, measure)


def _pair(
    small: nn.Module, dense: nn.Module, example: torch.Tensor, backend: str
) -> dict[str, nn.Module]:
    """Return what a back-end times: forms are of torch's eager mode alone."""
    origin = origin_of(small)
    if origin is None:
        return {"dense": dense, "small": small}
    if backend != "eager":
        return {"dense": dense, "small": origin.model}
    folded = fold_batch_norms(dense, example)
    last = copy.deepcopy(folded).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {
        "dense, norms folded": folded,
        "dense, norms folded, channels last": last,
        "small": small,
    }


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
        f"{settings.threads} threads, {example.device}, up to {seconds:.0f} s"
    )
    options = {**settings.options(), "max_seconds": seconds, "backend": backend}
    found = compare_latency(models, example, batch_size=batch, **options)
    reference = min((n for n in models if n != "small"), key=found.ratios.__getitem__)
    ratio, low, high = found.ratio_to("small", reference)
    dense_ms = found.latencies[reference].median_ms
    return {
        "batch_size": batch,
        "threads": settings.threads,
        "device": found.latencies["small"].device,
        "backend": backend,
        "reference": reference,
        "dense_ms": dense_ms,
        # Of the ratio, which is of neighbouring runs: two medians would say something else.
        "small_ms": dense_ms * ratio,
        "ratio": ratio,
        "low": low,
        "high": high,
        "runs": found.latencies["small"].runs,
    }


def _where(model: nn.Module, example: torch.Tensor, settings: LatencySettings) -> dict[str, Any]:
    return {
        "machine": machine_of(example.device, threads=settings.threads),
        "class": type(model).__qualname__,
        "input": list(example.shape),
        "settings": settings.model_dump(mode="json"),
    }
