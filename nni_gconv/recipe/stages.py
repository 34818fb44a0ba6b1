"""The stages of a trial, in order; each leaves its files and facts in the trial's folder."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import nn

from nni_gconv import compat
from nni_gconv.artefact import load_compact, save_compact, versions
from nni_gconv.errors import ConfigError
from nni_gconv.export import export_model
from nni_gconv.files import atomic_path, write_json
from nni_gconv.profiling import compare_latency, count
from nni_gconv.pruning.methods import create_pruner
from nni_gconv.recipe.folder import TrialFolder
from nni_gconv.recipe.result import TrialResult
from nni_gconv.recipe.schema import Recipe
from nni_gconv.speedup.masks import load_masks
from nni_gconv.speedup.model_speedup import ModelSpeedup
from nni_gconv.training.data import load_data, make_loaders
from nni_gconv.training.distributed import Distributed
from nni_gconv.training.evaluator import make_evaluator
from nni_gconv.training.log import MetricLog
from nni_gconv.training.loop import fit
from nni_gconv.training.metrics import evaluate
from nni_gconv.training.seeding import seed_everything
from nni_gconv.training.zoo import list_models

__all__ = ["Trial"]

DENSE = "dense.safetensors"
MASKS = "masks.safetensors"
MASKED = "masked.safetensors"
SPEEDUP = "speedup.safetensors"
COMPACT = "compact.safetensors"


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
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.device = choose_device(recipe.device, distributed.local_rank)
        seed_everything(recipe.seed)
        bundle = load_data(recipe.data, seed=recipe.seed)
        self.num_classes, self.input_shape = bundle.num_classes, bundle.input_shape
        self.loaders = make_loaders(
            bundle,
            recipe.data,
            seed=recipe.seed,
            device=self.device,
            rank=distributed.rank,
            world_size=distributed.world_size,
        )
        self.log = MetricLog(folder.path) if distributed.is_main else None
        self.model = self.build().to(self.device)
        self._check_runs()
        self._check_prune()
        self.dense = self.model

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.log is not None:
            self.log.close()

    # -- stages -----------------------------------------------------------------------------------

    def train(self) -> None:
        """Train the dense network, or take the one that a fellow trial trained."""
        stage = self.recipe.train
        if stage is not None:
            shared = self._shared_folder(stage.share)
            if shared is None:
                self.folder.run("train", lambda: self._train_in(self.folder.path, self.log))
            else:
                self.folder.run("train", lambda: self._train_shared(shared))
                self._load_state(self.model, shared / DENSE)
            if shared is None:
                self._load_state(self.model, self.folder.path / DENSE)
        self.dense = copy.deepcopy(self.model)

    def prune(self) -> None:
        """Make masks, with or without training."""
        if self.recipe.prune is None:
            return
        self.folder.run("prune", self._prune)
        self._load_state(self.model, self.folder.path / MASKED)

    def speedup(self) -> None:
        """Turn masks into a smaller, equal model."""
        if self.recipe.prune is None:
            return
        path = self.folder.path / SPEEDUP
        self.folder.run("speedup", self._speedup)
        self.distributed.barrier()
        self.model = load_compact(path, self.build, device=self.device)

    def finetune(self) -> None:
        """Train the small model."""
        if self.recipe.finetune is not None:
            self.folder.run("finetune", self._finetune)
        elif not self.folder.finished("finetune"):
            self._save_compact(COMPACT)
        self.distributed.barrier()
        self.model = load_compact(self.folder.path / COMPACT, self.build, device=self.device)

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

    def report(self) -> TrialResult:
        """Measure both models; the test images are looked at here and nowhere else."""
        facts = self.folder.run("report", self._measure)
        recipe = self.recipe
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
            },
            seed=recipe.seed,
            recipe=recipe.model_dump(mode="json"),
            versions=versions(),
            trial=os.environ.get("NNI_TRIAL_JOB_ID"),
            output=self.folder.path,
        )

    # -- building ---------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        """Build the dense architecture with the recipe's weights, if it names some."""
        settings = self.recipe.model
        defaults: dict[str, Any] = {"num_classes": self.num_classes}
        if settings.name in list_models():
            defaults["in_channels"] = self.input_shape[0]
        seed_everything(self.recipe.seed)
        return settings.build(**defaults)

    def _example(self) -> torch.Tensor:
        return torch.zeros(1, *self.input_shape, device=self.device)

    def _check_runs(self) -> None:
        self.model.eval()
        try:
            with torch.no_grad():
                output = self.model(self._example())
        except (RuntimeError, ValueError, TypeError) as error:
            shape = "×".join(str(s) for s in self.input_shape)
            first = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"model {self.recipe.model.name} does not run on {self.recipe.data.name} images "
                f"({shape}): {first}"
            ) from error
        finally:
            self.model.train()
        if not isinstance(output, torch.Tensor) or output.shape[-1] < self.num_classes:
            raise ConfigError(
                f"model {self.recipe.model.name} does not give one number for each of the "
                f"{self.num_classes} classes of {self.recipe.data.name}"
            )

    def _check_prune(self) -> None:
        """Find what is wrong with the prune section now, not after training."""
        if self.recipe.prune is None or self.folder.finished("prune"):
            return
        trial_copy = copy.deepcopy(self.model)
        evaluator = None
        if self.recipe.sparsify is not None:
            evaluator = make_evaluator(
                trial_copy,
                self.loaders,
                self.recipe.sparsify,
                directory=self.folder.path / "sparsify",
                device=self.device,
                distributed=self.distributed,
            )
        example = self._example()
        create_pruner(self.recipe.prune, trial_copy, dummy_input=example, evaluator=evaluator)

    # -- training the dense network ---------------------------------------------------------------

    def _train_in(self, path: Path, log: MetricLog | None) -> dict[str, Any]:
        stage = self.recipe.train
        if stage is None:
            raise ConfigError("train: the recipe has no such section")
        result = fit(
            self.model,
            self.loaders,
            stage,
            directory=path / "train",
            device=self.device,
            seed=self.recipe.seed,
            stage="train",
            log=log,
            progress=not self.quiet,
            resume=True,
            distributed=self.distributed,
        )
        self._save_state(self.model, path / DENSE)
        return {"best_epoch": result.best_epoch, "val_accuracy": result.best_accuracy}

    def _shared_folder(self, share: str | None) -> Path | None:
        """Name the folder of the dense network that this recipe and its like ask for."""
        if share is None:
            return None
        root = compat.experiment_folder() if share == "experiment" else Path(share).expanduser()
        if root is None:
            return None
        content = self.recipe.model_dump(mode="json")
        asked = {key: content[key] for key in ("model", "data", "train", "seed")}
        asked["train"].pop("share")
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        return root / "nni_gconv_dense" / digest

    def _train_shared(self, shared: Path) -> dict[str, Any]:
        """Train once among all trials that share; the others wait and take the result."""
        shared.mkdir(parents=True, exist_ok=True)
        facts = shared / "train.json"
        if not self.distributed.is_main:
            self.distributed.barrier()
            return json.loads(facts.read_text(encoding="utf-8"))
        if self.distributed.active:
            raise ConfigError("train.share: cannot be used under torchrun; train once beforehand")
        with FileLock(shared / ".lock"):
            if not facts.is_file():
                with MetricLog(shared, nni=False) as log:
                    write_json(facts, self._train_in(shared, log))
        return {"shared": str(shared), **json.loads(facts.read_text(encoding="utf-8"))}

    # -- pruning ----------------------------------------------------------------------------------

    def _prune(self) -> dict[str, Any]:
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
                distributed=self.distributed,
            )
        pruner = create_pruner(
            settings, self.model, dummy_input=self._example(), evaluator=evaluator
        )
        _, masks = pruner.compress(max_epochs=None if sparsify is None else sparsify.epochs)
        pruner.unwrap_model()
        flat = {
            f"{module}.{target}": mask.to("cpu", torch.uint8)
            for module, targets in masks.items()
            for target, mask in targets.items()
            if mask is not None
        }
        if self.distributed.is_main:
            with atomic_path(self.folder.path / MASKS) as temporary:
                save_file(flat, temporary)
        self._save_state(self.model, self.folder.path / MASKED)
        kept = sum(int(m.sum()) for m in flat.values()) / max(
            1, sum(m.numel() for m in flat.values())
        )
        return {"mask_density": kept, "skipped": pruner.skipped}

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
        )
        self.model = speedup.speedup_model()
        self._save_compact(SPEEDUP)
        report = speedup.report()
        return {"difference": report.difference, "gathers": report.gathers, "notes": report.notes}

    def _finetune(self) -> dict[str, Any]:
        settings = self.recipe.finetune
        if settings is None:
            raise ConfigError("finetune: the recipe has no such section")
        if settings.from_scratch:
            seed_everything(self.recipe.seed)
            reset_parameters(self.model)
        result = fit(
            self.model,
            self.loaders,
            settings,
            directory=self.folder.path / "finetune",
            device=self.device,
            seed=self.recipe.seed,
            stage="finetune",
            log=self.log,
            progress=not self.quiet,
            resume=True,
            distributed=self.distributed,
        )
        self._save_compact(COMPACT)
        return {"best_epoch": result.best_epoch, "val_accuracy": result.best_accuracy}

    # -- measuring --------------------------------------------------------------------------------

    def _measure(self) -> dict[str, Any]:
        small, dense = count(self.model, self._example()), count(self.dense, self._example())
        accuracy, accuracy_dense = (
            self._accuracy(self.model, "val"),
            self._accuracy(self.dense, "val"),
        )
        metrics: dict[str, float] = {
            "default": accuracy,
            "accuracy": accuracy,
            "accuracy_dense": accuracy_dense,
            "params": small.params,
            "params_ratio": small.params / dense.params,
            "macs": small.macs,
            "macs_ratio": small.macs / dense.macs,
        }
        dense_facts: dict[str, float] = {"params": dense.params, "macs": dense.macs}
        rows = self._latency()
        if rows:
            metrics["latency_ms"], metrics["latency_ratio"] = rows[0]["small_ms"], rows[0]["ratio"]
            dense_facts["latency_ms"] = rows[0]["dense_ms"]
        if self.recipe.objective is not None:
            missing = [name for name in self.recipe.objective if name not in metrics]
            if missing:
                raise ConfigError(f"objective.{missing[0]}: not measured by this recipe")
            metrics["default"] = sum(w * metrics[m] for m, w in self.recipe.objective.items())
        return {
            "metrics": metrics,
            "dense": dense_facts,
            "test": {
                "accuracy": self._accuracy(self.model, "test"),
                "accuracy_dense": self._accuracy(self.dense, "test"),
            },
            "latency": rows,
        }

    def _accuracy(self, model: nn.Module, part: str) -> float:
        loader = getattr(self.loaders, part)
        return evaluate(model, loader, device=self.device, distributed=self.distributed).accuracy

    def _latency(self) -> list[dict[str, Any]]:
        settings = self.recipe.report.latency
        if settings is None or not self.distributed.is_main:
            return []
        rows = []
        for size in settings.batch_sizes:
            found = compare_latency(
                {"dense": self.dense, "small": self.model},
                self._example(),
                batch_size=size,
                **settings.options(),
            )
            rows.append(
                {
                    "batch_size": size,
                    "threads": settings.threads,
                    "device": found.latencies["small"].device,
                    "dense_ms": found.latencies["dense"].median_ms,
                    "small_ms": found.latencies["small"].median_ms,
                    "ratio": found.ratios["small"],
                }
            )
        return rows

    # -- files ------------------------------------------------------------------------------------

    def _save_compact(self, name: str) -> None:
        if self.distributed.is_main:
            save_compact(
                self.model, self.folder.path / name, recipe=self.recipe.model_dump(mode="json")
            )

    def _save_state(self, model: nn.Module, path: Path) -> None:
        if self.distributed.is_main:
            state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
            with atomic_path(path) as temporary:
                save_file(state, temporary)
        self.distributed.barrier()

    def _load_state(self, model: nn.Module, path: Path) -> None:
        model.load_state_dict(load_file(path, device=str(self.device)))


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that is there.

    Raises
    ------
    ConfigError
        No such device on this machine.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device: {name!r} is not allowed (allowed: auto, cpu, cuda, cuda:N)"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name!r} is not there; this machine has {torch.cuda.device_count()} GPUs"
        )
    return device


def reset_parameters(model: nn.Module) -> None:
    """Initialise every layer anew, as its class does when it is made."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
