"""What a trial came to: the content of ``result.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrialResult:
    """Numbers of one finished trial.

    Attributes
    ----------
    metrics : dict of str to float
        Flat numbers, as reported to NNI (without ``top5...``, the interval, and
        ``accuracy`` where it is ``default``):
        ``default``; ``accuracy_dense`` (not of a recipe that
        trains no dense network and loads none), ``accuracy_masked`` (with masks),
        ``accuracy_small`` (after reconstruction and speedup, before any fine-tuning)
        and ``accuracy`` (at the end), fractions of 1 on the validation images, with ``top5...``
        beside each where there are more than 5 classes; ``params``, ``params_ratio``, ``macs``,
        ``macs_ratio`` and, if measured, ``latency_ms``, ``latency_ratio`` and the ends of its 95 %
        interval, ``latency_ratio_low`` and ``latency_ratio_high``; ratios are small over dense.
    test : dict of str to float
        The same accuracies on the test images, which served for no choice.
    validation_seen : bool
        Whether given weights have probably been trained on the validation images: then these
        flatter networks near to them.
    stages : dict of str to dict
        Seconds and facts of each stage.
    output : Path
        The folder of the trial.
    """

    name: str
    method: str
    budget: dict[str, float] | None
    metrics: dict[str, float]
    dense: dict[str, float]
    test: dict[str, float]
    latency: list[dict[str, Any]]
    stages: dict[str, dict[str, Any]]
    seed: int
    recipe: dict[str, Any]
    versions: dict[str, str]
    trial: str | None
    output: Path = field(compare=False)
    validation_seen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        fields = {k: v for k, v in vars(self).items() if k != "output"}
        return {"format": 1, **fields}

    @classmethod
    def from_dict(cls, data: dict[str, Any], output: Path) -> TrialResult:
        """Read back what :meth:`to_dict` gave."""
        return cls(**{k: v for k, v in data.items() if k != "format"}, output=output)
