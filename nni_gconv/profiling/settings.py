"""How a recipe asks for measured latency; reading it needs no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt


class LatencySettings(BaseModel):
    """The recipe's ``report.latency``: how often, and on how many threads, to time a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_sizes: tuple[PositiveInt, ...] = Field(
        default=(1, 64), min_length=1, description="Batch sizes that are timed, each on its own"
    )
    threads: PositiveInt = Field(default=1, le=256, description="CPU threads of one operator")
    warmup: NonNegativeInt = Field(default=3, description="Runs before the timed ones")
    min_runs: PositiveInt = Field(default=10, description="At least so many timed runs")
    min_seconds: NonNegativeFloat = Field(
        default=0.5, description="And at least so many seconds of them"
    )
    max_seconds: NonNegativeFloat = Field(
        default=20.0,
        description="No more than so many seconds for all that a trial times, whatever the "
        "other two say; three runs of each network are timed all the same",
    )
    channels_last: bool = Field(default=False, description="Time the channels-last memory layout")

    backends: tuple[Literal["eager", "compile", "onnxruntime", "openvino"], ...] = Field(
        default=("eager",),
        min_length=1,
        description="What runs the networks, each timed on its own; the first is the metric. "
        "compile is torch.compile with frozen weights, onnxruntime and openvino run an ONNX file "
        "on the CPU; compiling takes up to minutes",
    )

    def options(self) -> dict[str, Any]:
        """Return the arguments of :func:`measure_latency` but the batch size and the backend."""
        return self.model_dump(exclude={"batch_sizes", "backends"})
