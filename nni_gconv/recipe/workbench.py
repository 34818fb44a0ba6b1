"""What the stages of a trial work with: network, images, device, log, counts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from nni_gconv import compat
from nni_gconv.artefact import holds_plan, load_compact
from nni_gconv.display import Stages, say
from nni_gconv.errors import ConfigError
from nni_gconv.graph import Graph
from nni_gconv.profiling import Profile, profile
from nni_gconv.pruning import TrainedPruner
from nni_gconv.recipe.folder import TrialFolder
from nni_gconv.recipe.latency import TimingCache
from nni_gconv.recipe.measure import Accuracies, accuracies, other_scale, seen_before
from nni_gconv.recipe.result import TrialResult
from nni_gconv.recipe.schema import Recipe
from nni_gconv.recipe.state_files import load_maps, save_maps
from nni_gconv.training import (
    Distributed,
    FeatureTeacher,
    MetricLog,
    TrainSettings,
    common_maps,
    evaluate,
    no_better_than_chance,
    seed_everything,
)
from nni_gconv.training.data import load_data, make_loaders
from nni_gconv.training.logs import open_trackers
from nni_gconv.training.zoo import ModelSettings, list_models

if TYPE_CHECKING:
    from typing_extensions import Self

    from nni_gconv.speedup import ModelSpeedup


class Workbench:
    """A recipe made ready: the network built and tried, the images loaded.

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
        folder.shown = Stages(folder.path.name, not self.quiet, folder.note)
        self.device = choose_device(recipe.device, distributed.local_rank)
        seed_everything(recipe.seed)
        bundle = load_data(recipe.data, seed=recipe.seed)
        if not self.quiet:
            say(f"{folder.path.name}: {bundle.description}")
        self.num_classes, self.input_shape = bundle.num_classes, bundle.input_shape
        self._normalize = bundle.normalize
        self._image_counts = len(bundle.val), len(bundle.test)
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

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        threads = _threads(self.recipe, self._threads)
        if threads < self._threads and self.recipe.threads is None and not self.quiet:
            say(f"threads: {threads}, this trial's share of the cores (torch: {self._threads})")
        torch.set_num_threads(threads)
        if self.distributed.is_main:
            self.log = MetricLog(self.folder.path, trackers=self._trackers())
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

    def _trackers(self) -> list[Any]:
        recipe = self.recipe
        if not recipe.report.to:
            return []
        title = recipe.name or self.folder.path.name
        settings = recipe.model_dump(mode="json")
        return open_trackers(recipe.report.to, self.folder.path, title, settings)

    def show(self, result: TrialResult) -> None:
        """Give the numbers of the whole trial to MLflow and wandb, if the recipe names them."""
        for tracker in self.log.trackers if self.log is not None else ():
            tracker.numbers(result.metrics, None)

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

    def _teacher(self, stage: TrainSettings, maps: Path | None = None) -> nn.Module | None:
        """Give the dense network to a stage that learns from it, by its maps too where asked."""
        if stage.distill is None:
            return None
        if maps is None or not stage.distill.features:
            return self.dense
        return FeatureTeacher(self.dense, load_maps(maps))

    def _save_maps(self, speedup: ModelSpeedup, whole: nn.Module, path: Path) -> None:
        """Find which feature maps of `whole`, which was cut, the small network has."""
        speedup.mask(whole)
        images = next(iter(self.loaders.plain))[0][:8].to(self.device)
        save_maps(common_maps(self.model, whole, images), path, self.distributed)

    def _accuracies(self, which: str) -> Accuracies:
        given = self.loaders, self.device, self.distributed, self.num_classes
        return accuracies(which, self.model, *given)

    def _say_dense(self) -> None:
        """Say what the given weights are worth before any work."""
        found = evaluate(
            self.model, self.loaders.val, device=self.device, distributed=self.distributed
        )
        self.folder.shown.say(f"{'weights':<11} val accuracy {found.accuracy:.4f}")
        if no_better_than_chance(found.accuracy, found.count, self.num_classes):
            self._say(
                f"weights: on {found.count} validation images no better than chance: other "
                "classes, another order of them, another scale of pixels (data.normalize), or a "
                "head that nothing has trained? Mend that, or add a train section"
            )
        wanted = other_scale(self.model, self._normalize)
        if self.recipe.model.weights == "pretrained" and wanted and not self.recipe.data.normalize:
            self._say(
                "weights: published for pixels of another scale than the images have: "
                f"data.normalize: {{mean: {list(wanted.mean)}, std: {list(wanted.std)}}} is theirs"
            )

    def validation_seen(self, val: float, test: float | None = None) -> bool:
        """Tell, and say, whether given weights seem to have been trained on validation images.

        Parameters
        ----------
        val, test : float
            Accuracies of the dense network; it is tested now where the latter is not known.
        """
        if self.recipe.train is not None or not self.recipe.dense_is_trained:
            return False
        if test is None:
            found = evaluate(
                self.dense, self.loaders.test, device=self.device, distributed=self.distributed
            )
            test = found.accuracy
        seen = seen_before(val, test, self._image_counts)
        if seen:
            self._say(
                f"weights: accuracy {val:.4f} on validation images, {test:.4f} on test images: "
                "their training has probably seen the former, which then flatter networks near to "
                "them; compare by the test accuracy, or validate on images that no training saw"
            )
        return seen

    def _say(self, what: str) -> None:
        if not self.quiet:
            sys.stderr.write(f"{what}\n")

    def _load(self, path: Path) -> nn.Module:
        """Load the small network as it is to be trained."""
        return load_compact(path, self.architecture, device=self.device, optimized=False)


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
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is not allowed (allowed: auto, cpu, cuda, cuda:N)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name!r} is not there; this machine has {torch.cuda.device_count()} GPUs"
        )
    return device


def check_runs(
    model: nn.Module,
    example: torch.Tensor,
    *,
    model_name: str,
    data_name: str,
    num_classes: int,
) -> None:
    """Run the model once on an example, so that what does not fit is said before training.

    Raises
    ------
    ConfigError
        The forward fails, or its output is not one number a class.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(example)
    except (RuntimeError, ValueError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model {model_name} does not run on {data_name} images "
            f"({_shown(example.shape[1:])}): {first}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor) or output.shape[-1] < num_classes:
        raise ConfigError(
            f"model {model_name} does not give one number for each of the {num_classes} classes "
            f"of {data_name}"
        )


def _shown(shape: Sequence[int]) -> str:
    return "×".join(str(s) for s in shape)


def _threads(recipe: Recipe, chosen: int) -> int:
    """Choose CPU threads: the recipe's, torch's if the user told it, else this trial's share.

    Torch counts the cores of the machine. Where trials run together, or a container leaves fewer,
    so many threads wait for each other and take many times as long.
    """
    if recipe.threads is not None or "OMP_NUM_THREADS" in os.environ:
        return recipe.threads or chosen
    return min(chosen, max(1, compat.usable_cores() // compat.trials_at_a_time()))
