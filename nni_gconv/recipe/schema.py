"""The recipe: one YAML, one trial. Sections are the settings of the parts that use them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nni_gconv.profiling import LatencySettings
from nni_gconv.pruning import PruneSettings
from nni_gconv.training import FinetuneSettings, TrainSettings
from nni_gconv.training.data import DataSettings
from nni_gconv.training.zoo import ModelSettings

#: What an objective may weigh, and what a trial reports.
METRICS = (
    "accuracy",
    "accuracy_dense",
    "params",
    "params_ratio",
    "macs",
    "macs_ratio",
    "latency_ms",
    "latency_ratio",
)
_FORBID = ConfigDict(extra="forbid", frozen=True)


class TrainStage(TrainSettings):
    """The ``train:`` section: how the dense network is trained, and who else may use it."""

    share: str | None = Field(
        None,
        description="'experiment': trials of one NNI experiment that ask for the same dense "
        "network train it once; or a folder, for the same among runs.",
    )


class SpeedupSettings(BaseModel):
    """The ``speedup:`` section."""

    model_config = _FORBID

    verify: bool = Field(True, description="Compare masked and small model in float64.")
    constants: Literal["both", "silence", "fold"] = Field(
        "both", description="What to do with what a norm emits behind a masked filter."
    )
    fold_permutations: bool = Field(True, description="Fold permutations into weights.")


class ExportSettings(BaseModel):
    """The ``export:`` section."""

    model_config = _FORBID

    formats: tuple[Literal["safetensors", "onnx", "pt2"], ...] = Field(
        ("safetensors",), description="Files to write; safetensors is always written."
    )
    optimize: bool | None = Field(
        None,
        description="Find the quickest equal form of every layer on this machine, for the batch "
        "size and threads of report.latency; they are written to optimized.safetensors, and "
        "latency is that of the network in these forms, over the dense one with norms folded. "
        "null: where the budget is of latency.",
    )


class ReportSettings(BaseModel):
    """The ``report:`` section."""

    model_config = _FORBID

    latency: LatencySettings | None = Field(
        default_factory=LatencySettings, description="How latency is measured; null: it is not."
    )
    to: tuple[Literal["mlflow", "wandb"], ...] = Field(
        (),
        description="Where numbers are shown beside TensorBoard: extras of these names.",
    )


class Recipe(BaseModel):
    """Everything one trial does. Stages that are absent are skipped.

    Examples
    --------
    >>> recipe = Recipe(model={"name": "resnet20"}, data={"name": "digits"})
    >>> recipe.seed, recipe.prune
    (0, None)
    """

    model_config = _FORBID

    name: str | None = Field(None, description="Shown in reports; default: the file's name.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of weights, splits, order and augmentation.")
    device: str = Field("auto", description="cpu, cuda, cuda:1, or auto: a GPU when there is one.")
    gpus: int = Field(
        1, ge=1, description="GPUs a trial takes under NNI; with more than one, torchrun starts it."
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="CPU threads; null: torch's choice, at most the trial's share of the cores.",
    )
    model: ModelSettings
    data: DataSettings
    train: TrainStage | None = None
    sparsify: TrainSettings | None = None
    prune: PruneSettings | None = None
    speedup: SpeedupSettings = Field(default_factory=SpeedupSettings)
    finetune: FinetuneSettings | None = None
    export: ExportSettings = Field(default_factory=ExportSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)
    objective: dict[Literal[METRICS], float] | None = Field(  # type: ignore[valid-type]
        None,
        description="Weights of metrics whose sum is reported as 'default'; null: accuracy.",
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        """The name is that of a folder under ``runs/``; it must not lead anywhere else."""
        if name is None:
            return None
        if not name.strip(". ") or re.search(r"[/\\:\x00-\x1f\x7f]", name):
            raise ValueError("a plain name without / or \\ is needed, it names a folder")
        if len(name.encode("utf-8", "replace")) > 200:
            raise ValueError("at most 200 letters")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.sparsify is not None and self.prune is None:
            raise ValueError("sparsify: needs a prune section that names the method")
        if self.train is None and self.model.weights is None and self.prune is not None:
            untrained = self.finetune is None or not self.finetune.from_scratch
            if untrained and self.sparsify is None:
                raise ValueError(
                    "nothing to prune: give model.weights, or a train section, or "
                    "finetune.from_scratch: true"
                )
        self._check_distill()
        timed = [name for name in self.objective or {} if name.startswith("latency")]
        against = [name for name in self.objective or {} if name.endswith("_dense")]
        if against and not self.dense_is_trained:
            raise ValueError(f"objective.{against[0]}: the dense network is not trained")
        if timed and self.report.latency is None:
            raise ValueError(f"objective.{timed[0]}: not measured, since report.latency is null")
        return self

    @property
    def optimizes(self) -> bool:
        """Whether the network's quickest forms are looked for: a budget of latency means these."""
        budget = (self.prune.budget if self.prune is not None else None) or {}
        asked = self.export.optimize
        return "latency" in budget if asked is None else asked

    @property
    def dense_is_trained(self) -> bool:
        """Whether the dense network has learned its classes: else its accuracy is no measure."""
        learns = self.train is not None and self.train.epochs > 0
        return learns or (self.model.weights is not None and not self.model.new_head)

    @property
    def how_to_train(self) -> str:
        """What a dense network lacks that has not learned its classes."""
        if self.model.new_head:
            return "add a train section for its new head"
        return "give model.weights or a train section"

    @property
    def begins_trained(self) -> bool:
        """Whether what is pruned has learned anything, be it for other classes."""
        return self.dense_is_trained or self.model.weights is not None

    @property
    def learns_from_maps(self) -> bool:
        """Whether feature maps of the dense network teach the small one."""
        taught = self.finetune and self.finetune.distill
        return bool(taught and taught.features)

    def _check_distill(self) -> None:
        """What teaches is the dense network: there has to be one that has learned something."""
        if self.train is not None and self.train.distill is not None:
            raise ValueError(
                "train.distill: the dense network has no teacher; see finetune.distill"
            )
        for name, stage in (("sparsify", self.sparsify), ("finetune", self.finetune)):
            taught = stage is not None and stage.distill is not None
            if taught and not self.dense_is_trained:
                raise ValueError(
                    f"{name}.distill: the dense network is not trained: {self.how_to_train}"
                )
        if self.sparsify is not None and self.sparsify.distill and self.sparsify.distill.features:
            raise ValueError("sparsify.distill.features: feature maps teach in finetune alone")
        if self.learns_from_maps and self.prune is None:
            raise ValueError(
                "finetune.distill.features: needs a prune section, whose masks say "
                "which feature maps are the dense network's"
            )
