"""The stages of a trial, in order; each leaves its files and facts in the trial's folder."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from nni_gconv import compat
from nni_gconv.artefact import holds_plan, load_compact, save_compact, versions
from nni_gconv.errors import ConfigError
from nni_gconv.export import export_model
from nni_gconv.graph import Graph, load_masks, trace
from nni_gconv.profiling import Counts, LatencySettings, Profile, check_met, profile
from nni_gconv.progress import Stages, say
from nni_gconv.pruning import Calibration, PruneSettings, Traced, TrainedPruner, create_pruner
from nni_gconv.recipe.folder import TrialFolder
from nni_gconv.recipe.latency import TimingCache, quickest_forms, time_networks
from nni_gconv.recipe.measure import Accuracies, accuracies, measure_models
from nni_gconv.recipe.pictures import log_blocks
from nni_gconv.recipe.result import TrialResult
from nni_gconv.recipe.schema import Recipe
from nni_gconv.recipe.setup import check_runs, choose_device, reset_parameters
from nni_gconv.recipe.shared_dense import read_shared, shared_folder, train_shared
from nni_gconv.recipe.state_files import load_state, save_masks, save_state
from nni_gconv.speedup import ModelSpeedup, layer_sizes
from nni_gconv.training import (
    Distributed,
    FitResult,
    MetricLog,
    TrainSettings,
    fit,
    make_evaluator,
    seed_everything,
)
from nni_gconv.training.data import load_data, make_loaders
from nni_gconv.training.zoo import ModelSettings, list_models

DENSE = "dense.safetensors"
MASKS = "masks.safetensors"
MASKED = "masked.safetensors"
SPEEDUP = "speedup.safetensors"
COMPACT = "compact.safetensors"
STATISTICS = "calibration"
OPTIMIZED = "optimized.safetensors"


class Trial:
    """One run of a recipe; its methods are the stages and are called in the order they stand.

    Parameters
    ----------
    recipe : Recipe
        What to do.
    folder : TrialFolder
        Where files go and which stages are finished.
    distributed : Distributed
        The processes that run this trial together.
    quiet : bool
        No progress on standard error.
    """

    def __init__(
        self, recipe: Recipe, folder: TrialFolder, distributed: Distributed, *, quiet: bool = False
    ) -> None:
        self.recipe, self.folder, self.distributed = recipe, folder, distributed
        self.quiet = quiet or not distributed.is_main
        folder.shown = Stages(folder.path.name, enabled=not self.quiet)
        self.device = choose_device(recipe.device, distributed.local_rank)
        seed_everything(recipe.seed)
        bundle = load_data(recipe.data, seed=recipe.seed)
        if not self.quiet:
            say(f"{folder.path.name}: {bundle.description}")
        self.num_classes, self.input_shape = bundle.num_classes, bundle.input_shape
        self.loaders = make_loaders(
            bundle,
            recipe.data,
            seed=recipe.seed,
            device=self.device,
            rank=distributed.rank,
            world_size=distributed.world_size,
        )
        self.log: MetricLog | None = None
        self.model = self.build().to(self.device)
        check_runs(
            self.model,
            self._example(),
            model_name=recipe.model.name,
            data_name=recipe.data.name,
            num_classes=self.num_classes,
        )
        self.dense = self.model
        self.fast: nn.Module | None = None  # the small model in its quickest form
        self._timings = TimingCache.of_experiment()
        self._graph: Graph | None = None
        self._pruner: TrainedPruner | None = None
        self._profiles: dict[str, Profile] = {}
        if "onnx" in recipe.export.formats and not folder.finished("export"):
            compat.check_onnx()

    def __enter__(self) -> Trial:
        self._threads = torch.get_num_threads()
        if self.recipe.threads is not None:
            torch.set_num_threads(self.recipe.threads)
        if self.distributed.is_main:
            self.log = MetricLog(self.folder.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        torch.set_num_threads(self._threads)
        if self.log is not None:
            self.log.close()

    # -- stages -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Find what is wrong with the prune section now, not after training.

        The pruner that is made for it is the one that prunes, unless a training comes between that
        it cannot know of: one that looks at weights, or has an evaluator, is made anew.
        """
        if self.recipe.prune is None or self.folder.finished("prune"):
            return
        if self.distributed.active and "latency" in (self.recipe.prune.budget or {}):
            raise ConfigError("prune.budget.latency: cannot be measured under torchrun")
        sparsify = self.recipe.sparsify
        pruner = self._make_pruner()
        pruner.check_training(0 if sparsify is None else sparsify.epochs)
        pruner.unwrap_model()
        trains = self.recipe.train is not None
        if sparsify is None and not (trains and pruner.reads_weights):
            self._pruner = pruner

    def train(self) -> None:
        """Train the dense network, or take the one that a fellow trial trained."""
        stage = self.recipe.train
        if stage is not None:
            shared = shared_folder(self.recipe, self.distributed)
            if shared is None:
                self.folder.run(
                    "train", lambda: self._train_in(self.folder.path, self.log), bar=False
                )
            else:
                done = self.folder.finished("train")
                self.folder.run("train", lambda: train_shared(shared, self._train_in), bar=False)
                if done and (shared / "train.json").is_file():
                    read_shared(shared / "train.json")
            load_state(self.model, (shared or self.folder.path) / DENSE, self.device)
        self.dense = copy.deepcopy(self.model)

    def prune(self) -> None:
        """Make masks, with or without training."""
        if self.recipe.prune is None:
            return
        self.folder.run("prune", self._prune, bar=self.recipe.sparsify is None)
        load_state(self.model, self.folder.path / MASKED, self.device)

    def speedup(self) -> None:
        """Turn masks into a smaller, equal model."""
        if self.recipe.prune is None:
            return
        path = self.folder.path / SPEEDUP
        self.folder.run("speedup", self._speedup)
        self.distributed.barrier()
        stage = "compact" if self.recipe.finetune is None else "finetune"
        if not self.folder.finished(stage):  # which leaves the same, trained
            self.model = self._load(path)

    def finetune(self) -> None:
        """Train the small model."""
        stage = "compact" if self.recipe.finetune is None else "finetune"
        before = self.folder.finished(stage)
        work = self._keep if stage == "compact" else self._finetune
        self.folder.run(stage, work, bar=stage == "compact")
        self.distributed.barrier()
        if before or self.distributed.active:
            self.model = self._load(self.folder.path / COMPACT)

    def export(self) -> None:
        """Write the formats asked beside the safetensors file, each checked against the model."""
        formats = [f for f in self.recipe.export.formats if f != "safetensors"]
        if not formats or not self.distributed.is_main:
            return

        def work() -> dict[str, Any]:
            files = {}
            for kind in formats:
                file = self.folder.path / f"compact.{kind}"
                files[kind] = export_model(self.model, self._example(), file).name
            return {"files": files}

        self.folder.run("export", work)

    def optimize(self) -> None:
        """Find the quickest equal form of every layer; the network in these forms is timed."""
        if not self.recipe.export.optimize:
            return

        def work() -> dict[str, Any]:
            if not self.distributed.is_main:
                return {}
            latency = self.recipe.report.latency or LatencySettings()
            given = latency, self._timings, self._say
            fast, facts = quickest_forms(self.model, self._prune_example(), *given)
            self._write_compact(fast, OPTIMIZED)
            return {k: v for k, v in facts.items() if k != "measured"}

        self.folder.run("optimize", work)
        self.distributed.barrier()
        path = self.folder.path / OPTIMIZED
        self.fast = load_compact(path, self.architecture, device=self.device)

    def report(self) -> TrialResult:
        """Measure both models and gather what the trial came to."""
        recipe = self.recipe
        facts = self.folder.run(
            "report",
            lambda: measure_models(
                recipe,
                self.model,
                self.dense,
                self.loaders,
                self.device,
                self.distributed,
                (self._profile("small"), self._profile("dense")),
                self.num_classes,
                self._latency(),
                [s["accuracy"] for s in self.folder.stages.values() if "accuracy" in s],
            ),
        )
        return TrialResult(
            name=recipe.name or self.folder.path.name,
            method=recipe.prune.method if recipe.prune is not None else "dense",
            budget=recipe.prune.budget if recipe.prune is not None else None,
            metrics=facts["metrics"],
            dense=facts["dense"],
            test=facts["test"],
            latency=facts["latency"],
            stages={
                name: {k: v for k, v in stage.items() if k not in facts or k == "seconds"}
                for name, stage in self.folder.stages.items()
                if name != "compact"  # a copy, no work
            },
            seed=recipe.seed,
            recipe=recipe.model_dump(mode="json"),
            versions=versions(),
            trial=os.environ.get("NNI_TRIAL_JOB_ID"),
            output=self.folder.path,
        )

    # -- building ---------------------------------------------------------------------------------

    def architecture(self) -> nn.Module:
        """Build the dense architecture, without weights of its own."""
        return self._build(self.recipe.model.model_copy(update={"weights": None}))

    def build(self) -> nn.Module:
        """Build the network to begin with: the recipe's weights, or a small model's file."""
        weights = self.recipe.model.weights_file
        if weights is not None and holds_plan(path := Path(weights).expanduser()):
            return load_compact(path, self.architecture, optimized=False).train()
        return self._build(self.recipe.model)

    def _build(self, settings: ModelSettings) -> nn.Module:
        defaults: dict[str, Any] = {"num_classes": self.num_classes}
        if settings.name in list_models():
            defaults["in_channels"] = self.input_shape[0]
        seed_everything(self.recipe.seed)
        return settings.build(**defaults)

    def _example(self, batch: int = 1) -> torch.Tensor:
        return torch.zeros(batch, *self.input_shape, device=self.device)

    def _prune_example(self) -> torch.Tensor:
        """A budget of latency is for the batch size that is reported first."""
        latency = self.recipe.report.latency
        return self._example(1 if latency is None else latency.batch_sizes[0])

    def _profile(self, which: Literal["small", "dense"]) -> Profile:
        """What a network costs: it runs once for that, whoever asks."""
        if which not in self._profiles:
            model = self.model if which == "small" else self.dense
            self._profiles[which] = profile(model, self._example())
        return self._profiles[which]

    def _teacher(self, stage: TrainSettings) -> nn.Module | None:
        """Give the dense network to a stage that learns from it."""
        return None if stage.distill is None else self.dense

    def _accuracies(self, which: str) -> Accuracies:
        given = self.loaders, self.device, self.distributed, self.num_classes
        return accuracies(which, self.model, *given)

    def _make_pruner(self) -> TrainedPruner:
        """Make the pruner of the recipe for the network as it is; it is wrapped by that."""
        settings, sparsify = self.recipe.prune, self.recipe.sparsify
        if settings is None:
            raise ConfigError("prune: the recipe has no such section")
        evaluator = None
        if sparsify is not None:
            evaluator = make_evaluator(
                self.model,
                self.loaders,
                sparsify,
                directory=self.folder.path / "sparsify",
                device=self.device,
                seed=self.recipe.seed,
                log=self.log,
                progress=not self.quiet,
                resume=True,
                teacher=self._teacher(sparsify),
                distributed=self.distributed,
            )
        if self._graph is None:
            self._graph = trace(self.model, self._example())
        dense = self._profile("dense")
        return create_pruner(
            settings,
            self.model,
            dummy_input=self._prune_example(),
            evaluator=evaluator,
            traced=Traced(self._graph, Counts(dense.params, dense.macs)),
            calibration=self._calibration(settings),
        )

    def _calibration(self, settings: PruneSettings) -> Calibration | None:
        """Take images of the training split, the same in every process."""
        asked = settings.calibration
        if asked is None:
            return None
        return Calibration(
            self.loaders.plain,
            images=asked.images,
            batch_size=asked.batch_size,
            keep_in=self._shared_statistics() or self.folder.path / STATISTICS,
            progress=not self.quiet,
        )

    def _shared_statistics(self) -> Path | None:
        """Name the folder of statistics that this trial shares with others, if it does."""
        asked = self.recipe.prune and self.recipe.prune.calibration
        if not asked or asked.share is None:
            return None
        if asked.share != "experiment":
            return Path(asked.share).expanduser()
        root = compat.experiment_folder()
        return None if root is None else root / "nni_gconv_statistics"

    # -- training the dense network ---------------------------------------------------------------

    def _train_in(self, path: Path, log: MetricLog | None) -> dict[str, Any]:
        stage = self.recipe.train
        if stage is None:
            raise ConfigError("train: the recipe has no such section")
        result = self._fit(stage, "train", path, log)
        save_state(self.model, path / DENSE, self.distributed)
        return {"best_epoch": result.best_epoch, "val_accuracy": result.best_accuracy}

    def _fit(
        self, settings: TrainSettings, stage: str, path: Path, log: MetricLog | None
    ) -> FitResult:
        return fit(
            self.model,
            self.loaders,
            settings,
            directory=path / stage,
            device=self.device,
            seed=self.recipe.seed,
            stage=stage,
            log=log,
            progress=not self.quiet,
            resume=True,
            teacher=self._teacher(settings),
            distributed=self.distributed,
        )

    # -- pruning ----------------------------------------------------------------------------------

    def _prune(self) -> dict[str, Any]:
        sparsify = self.recipe.sparsify
        pruner = self._pruner
        if pruner is None:
            pruner = self._make_pruner()
        else:
            pruner.wrap_again()
        pruner.begins_trained = self.recipe.dense_is_trained
        accuracy: Accuracies = {}
        pruner.when_masked = lambda: accuracy.update(self._accuracies("masked"))
        _, masks = pruner.compress(max_epochs=None if sparsify is None else sparsify.epochs)
        log_blocks(self.log, pruner)
        pruner.unwrap_model()
        density = save_masks(masks, self.folder.path / MASKS, self.distributed)
        save_state(self.model, self.folder.path / MASKED, self.distributed)
        skipped = getattr(pruner, "skipped", {})
        facts = {"mask_density": density, "skipped": skipped, "accuracy": accuracy}
        if self.distributed.is_main:  # they served a stage that was cut short
            shutil.rmtree(self.folder.path / STATISTICS, ignore_errors=True)
        if pruner.reconstruction is not None:
            facts["reconstruction"] = asdict(pruner.reconstruction)
        return facts

    def _speedup(self) -> dict[str, Any]:
        settings = self.recipe.speedup
        speedup = ModelSpeedup(
            self.model,
            self._example(),
            load_masks(self.folder.path / MASKS),
            fold_permutations=settings.fold_permutations,
            verify=settings.verify,
            constants=settings.constants,
            seed=self.recipe.seed,
            graph=self._graph,
        )
        self.model = speedup.speedup_model()
        report = speedup.report()
        small, dense = self._profile("small"), self._profile("dense")
        check_met(
            (self.recipe.prune and self.recipe.prune.budget) or {},
            {"macs": small.macs, "params": small.params},
            {"macs": dense.macs, "params": dense.params},
            report.notes,
        )
        self._save_compact(SPEEDUP)
        return {
            "difference": report.difference,
            "gathers": report.gathers,
            "notes": list(report.notes),
            "accuracy": self._accuracies("small"),
        }

    def _finetune(self) -> dict[str, Any]:
        settings = self.recipe.finetune
        if settings is None:
            raise ConfigError("finetune: the recipe has no such section")
        if settings.from_scratch:
            seed_everything(self.recipe.seed)
            reset_parameters(self.model)
        result = self._fit(settings, "finetune", self.folder.path, self.log)
        self._save_compact(COMPACT)
        return {"best_epoch": result.best_epoch, "val_accuracy": result.best_accuracy}

    def _keep(self) -> dict[str, Any]:
        self._save_compact(COMPACT)
        return {}

    # -- files ------------------------------------------------------------------------------------

    def _latency(self) -> list[dict[str, Any]]:
        """One process has the clock; all report what it saw."""
        settings, rows = self.recipe.report.latency, []
        if settings is not None and self.distributed.is_main:
            small = self.model if self.fast is None else self.fast
            given = settings, self._timings, self._say
            rows = time_networks(small, self.dense, self._example(), *given)
        return self.distributed.broadcast_object(rows)

    def _say(self, what: str) -> None:
        if not self.quiet:
            sys.stderr.write(f"{what}\n")

    def _load(self, path: Path) -> nn.Module:
        """Load the small network as it is to be trained."""
        return load_compact(path, self.architecture, device=self.device, optimized=False)

    def _save_compact(self, name: str) -> None:
        if self.distributed.is_main:
            self._write_compact(self.model, name)

    def _write_compact(self, model: nn.Module, name: str) -> None:
        sizes = {
            "small": layer_sizes(self.model, None, self._profile("small")),
            "dense": layer_sizes(self.dense, None, self._profile("dense")),
        }
        content = self.recipe.model_dump(mode="json")
        save_compact(model, self.folder.path / name, recipe=content, layers=sizes)
