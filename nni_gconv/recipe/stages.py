"""The stages of a trial, in order; each leaves its files and facts in the trial's folder."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from nni_gconv import compat
from nni_gconv.artefact import load_compact, save_compact, versions
from nni_gconv.errors import ConfigError
from nni_gconv.export import export_model
from nni_gconv.graph import load_masks, trace
from nni_gconv.profiling import Counts, LatencySettings, check_met
from nni_gconv.pruning import Calibration, PruneSettings, Traced, TrainedPruner, create_pruner
from nni_gconv.recipe.latency import quickest_forms, time_networks
from nni_gconv.recipe.measure import Accuracies, measure_models
from nni_gconv.recipe.pictures import log_blocks
from nni_gconv.recipe.result import TrialResult
from nni_gconv.recipe.shared_dense import read_shared, shared_folder, train_shared
from nni_gconv.recipe.state_files import load_state, save_masks, save_state
from nni_gconv.recipe.workbench import Workbench
from nni_gconv.speedup import ModelSpeedup, layer_sizes
from nni_gconv.training import (
    FitResult,
    MetricLog,
    TrainSettings,
    fit,
    make_evaluator,
    seed_everything,
)

DENSE = "dense.safetensors"
MASKS = "masks.safetensors"
MASKED = "masked.safetensors"
SPEEDUP = "speedup.safetensors"
MAPS = "maps.safetensors"
COMPACT = "compact.safetensors"
STATISTICS = "calibration"
OPTIMIZED = "optimized.safetensors"


class Trial(Workbench):
    """One run of a recipe; its methods are the stages and are called in the order they stand.

    Parameters as for :class:`~nni_gconv.recipe.workbench.Workbench`.
    """

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
        elif self.recipe.dense_is_trained and not self.folder.stages:
            self._say_dense()
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
        if not self.recipe.optimizes:
            return

        def work() -> dict[str, Any]:
            if not self.distributed.is_main:
                return {}
            latency = self.recipe.report.latency or LatencySettings()
            given = latency, self._timings, self._say
            fast, facts = quickest_forms(self.model, self.dense, self._prune_example(), *given)
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
            validation_seen=self.validation_seen(
                facts["metrics"].get("accuracy_dense"), facts["test"].get("accuracy_dense")
            ),
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

    # -- the pruner -------------------------------------------------------------------------------

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
        self,
        settings: TrainSettings,
        stage: str,
        path: Path,
        log: MetricLog | None,
        teacher: nn.Module | None = None,
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
            teacher=teacher,
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
        pruner.begins_trained = self.recipe.begins_trained
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
        whole = copy.deepcopy(self.model) if self.recipe.learns_from_maps else None
        self.model = speedup.speedup_model()
        if whole is not None:
            self._save_maps(speedup, whole, self.folder.path / MAPS)
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
        teacher = self._teacher(settings, self.folder.path / MAPS)
        if settings.from_scratch:
            seed_everything(self.recipe.seed)
            _reset_parameters(self.model)
        result = self._fit(settings, "finetune", self.folder.path, self.log, teacher)
        self._save_compact(COMPACT)
        before = self.folder.stages.get("speedup", {}).get("accuracy", {})
        small = before.get("val", {}).get("accuracy_small", 0.0)
        if result.best_accuracy < small and not settings.from_scratch:
            self._say(
                f"finetune: the network is worse than before, val accuracy {small:.4f} -> "
                f"{result.best_accuracy:.4f}; a lower finetune.optimizer.lr or more epochs may help"
            )
        return {"best_epoch": result.best_epoch, "val_accuracy": result.best_accuracy}

    def _keep(self) -> dict[str, Any]:
        self._save_compact(COMPACT)
        return {}

    # -- latencies and files ----------------------------------------------------------------------

    def _latency(self) -> list[dict[str, Any]]:
        """One process has the clock; all report what it saw."""
        settings, rows = self.recipe.report.latency, []
        if settings is not None and self.distributed.is_main:
            small = self.model if self.fast is None else self.fast
            given = settings, self._timings, self._say
            rows = time_networks(small, self.dense, self._example(), *given)
        return self.distributed.broadcast_object(rows)

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


def _reset_parameters(model: nn.Module) -> None:
    """Initialise every layer anew, as its class does when it is made."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
