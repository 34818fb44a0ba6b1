"""The ``train:`` and ``finetune:`` sections of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Normalization = Literal["none", "mul", "div"]
Amp = Literal["none", "bf16", "fp16"]


class OptimizerSettings(BaseModel):
    """Which optimizer, with what; every number means what it means in the optimizer's class.

    Examples
    --------
    >>> chosen = OptimizerSettings(name="ProxSGD")
    >>> chosen.lr, chosen.weight_decay
    (0.001, 0.0)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["SGD", "AdamW", "Adam", "ProxSGD"] = Field(
        "SGD", description="Class in torch.optim, or nni_gconv.ProxSGD."
    )
    lr: float = Field(0.1, gt=0, description="Highest learning rate of the schedule.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="SGD; ProxSGD, where it weighs the new gradient."
    )
    weight_decay: float = Field(5e-4, ge=0, description="Decoupled for AdamW, else added to grad.")
    nesterov: bool = Field(False, description="SGD only.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam and AdamW only.")
    beta: float = Field(0.999, ge=0, lt=1, description="ProxSGD only, as the next three.")
    normalization: Normalization = Field("div", description="How gains depend on filters' sizes.")
    adaptive: bool = Field(True, description="Scale the steps of each filter.")
    exact_zeros: bool = Field(False, description="Filters become zero instead of ever smaller.")

    @model_validator(mode="before")
    @classmethod
    def _proxsgd(cls, given: Any) -> Any:
        """ProxSGD has a small rate and no weight decay; its penalty is that of its pruner."""
        if isinstance(given, Mapping) and given.get("name") == "ProxSGD":
            if given.get("weight_decay"):
                raise ValueError("weight_decay: ProxSGD has none, its penalty is the pruner's gain")
            if given.get("momentum") == 0:
                raise ValueError("momentum: ProxSGD weighs the new gradient by it: above 0")
            return {"lr": 1e-3, "weight_decay": 0.0, **given}
        return given

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"both numbers must be in [0, 1), got {betas}")
        return betas


class ScheduleSettings(BaseModel):
    """How the learning rate moves, as :class:`nni_gconv.training.optim.Schedule` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["cosine", "multistep", "constant"] = Field("cosine", description="Its shape.")
    warmup: float = Field(0.0, ge=0, description="Epochs of linear rise; may be a fraction.")
    milestones: tuple[int, ...] = Field(
        (), description="multistep: epochs that are finished when lr is multiplied by gamma."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: factor at each milestone.")
    min_lr: float = Field(0.0, ge=0, description="lr never falls below this after warm-up.")

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if any(m < 1 for m in milestones) or list(milestones) != sorted(set(milestones)):
            raise ValueError(f"must be ascending epochs from 1, got {list(milestones)}")
        return milestones


class DistillSettings(BaseModel):
    """How much a network learns from the dense one, its teacher, beside the labels.

    Examples
    --------
    >>> DistillSettings(temperature=2)
    DistillSettings(temperature=2.0, weight=0.7, features=0.0, features_epochs=2.0)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(
        4.0, gt=0, le=1000, description="Logits are divided by it: the higher, the softer."
    )
    weight: float = Field(
        0.7, ge=0, le=1, description="Share of the teacher in the loss; the labels have the rest."
    )
    features: float = Field(
        0.0,
        ge=0,
        description="finetune only: weight of the relative squared distance from the teacher's "
        "feature maps, a mean over all blocks, beside the rest of the loss.",
    )
    features_epochs: float = Field(
        2.0,
        gt=0,
        description="Epochs in which that weight falls to zero, step by step: feature maps help at "
        "first and hold a network back later.",
    )


class TrainSettings(BaseModel):
    """How a network is trained.

    Examples
    --------
    >>> settings = TrainSettings(epochs=2, optimizer={"lr": 0.05}, schedule={"warmup": 0.5})
    >>> settings.optimizer.name, settings.schedule.name, settings.keep
    ('SGD', 'cosine', 'best')
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(160, ge=0, description="Passes over the training images; 0 trains nothing.")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, description="Optimizer")
    schedule: ScheduleSettings = Field(
        default_factory=ScheduleSettings, description="Learning rate over time."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Of the training loss.")
    distill: DistillSettings | None = Field(
        None, description="Learn from the dense network too; null: from the labels alone."
    )
    amp: Amp = Field("none", description="Mixed precision; fp16 needs a GPU.")
    channels_last: bool = Field(False, description="Memory format of images and weights.")
    grad_clip: float | None = Field(None, gt=0, description="Largest norm of all gradients.")
    no_decay_norm_bias: bool = Field(
        False, description="No weight decay on biases and normalisation weights."
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Weights handed on: of the best validation accuracy (ties: the later), or last",
    )


class FinetuneSettings(TrainSettings):
    """How a pruned network is trained again."""

    epochs: int = Field(40, ge=0, description="Passes over the training images; 0 trains nothing.")
    optimizer: OptimizerSettings = Field(
        default_factory=lambda: OptimizerSettings(lr=0.01), description="Optimizer"
    )
    from_scratch: bool = Field(
        False, description="Forget the weights first: only the pruned shape is kept."
    )
