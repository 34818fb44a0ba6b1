"""Masks and a thousand images in, better weights out: never worse than without, or left alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.errors import ConfigError, check_model
from nni_gconv.graph import Replay, Wiring, extend_masks, map_channels, read_masks, state_of, trace
from nni_gconv.modes import evaluating
from nni_gconv.pruning.calibration import Calibration, trace_images
from nni_gconv.pruning.reconstruction.distance import distance, outputs_of
from nni_gconv.pruning.reconstruction.settings import ReconstructSettings
from nni_gconv.pruning.reconstruction.walk import RIDGES, State, Walk, masked_state
from nni_gconv.training import recalibrate_bn

_logger = logging.getLogger(__name__)

#: Bytes that the values of both networks may take: all images at once, or waiting between layers.
_MEMORY = 2 * 2**30
#: The same for one of several batches, beside what waits.
_BATCH = 3 * 2**28
#: The same of one network where only its outputs count: larger tensors are given back to the system
#: one by one, and cleared anew for the next, which takes much of a forward's time.
_LIGHT = 2**26


@dataclass(frozen=True)
class Reconstruction:
    """What a reconstruction came to, by images that it was not fitted to.

    Attributes
    ----------
    without, error : float
        Distance of the outputs from the dense network's: masked as it was, and after a quick fit to
        half of the images. See :func:`~nni_gconv.pruning.reconstruction.distance.distance`.
    refitted : bool
        Whether weights were fitted.
    recalibrated : bool
        Whether batch norm statistics were estimated anew.
    left : dict of str to str
        Weights that were not fitted, each with the reason.
    images : int
        Images looked at.
    """

    without: float
    error: float
    refitted: bool
    recalibrated: bool
    left: dict[str, str]
    images: int

    def __str__(self) -> str:
        """One line."""
        done = [
            name
            for name, on in (
                ("weights fitted", self.refitted),
                ("batch norms estimated anew", self.recalibrated),
            )
            if on
        ]
        how = ", ".join(done) or "left as it was: nothing brought it nearer"
        return (
            f"reconstruction on {self.images} images: {how}; distance to the dense outputs "
            f"{self.without:.4g} -> {self.error:.4g}"
        )


def reconstruct(
    model: nn.Module,
    masks: Mapping[str, Mapping[str, Tensor | None]],
    calibration: Any,
    *,
    settings: ReconstructSettings | None = None,
    seed: int = 0,
    aim: Mapping[str, Tensor] | None = None,
) -> Reconstruction:
    """Fit the weights that masks leave to the outputs of the unmasked network.

    Each convolution and linear layer is refitted by least squares, in the order they run, on what
    the masked network itself reads by then, towards what the dense network says; constants go into
    biases or running means. Masked weights stay as they are, so the masked network is still exactly
    the small one.

    Parameters
    ----------
    model : nn.Module
        The unwrapped model with its dense weights; changed in place, unless nothing helps.
    masks : mapping
        ``{module: {target: 0/1 tensor}}``, ours or NNI's. Filters that are zero whole are taken
        for removed with the norms behind them, as :class:`nni_gconv.ModelSpeedup` does.
    calibration : Calibration, Tensor or iterable of batches
        Images of the training split. Half of them say whether it helps; in the end all are used.
    settings : ReconstructSettings, optional
    seed : int
        Which places of the images are looked at.
    aim : mapping of str to Tensor, optional
        Parameters and buffers of the network to come near to, such as the dense one before a
        training with masks; default: the model's own, without masks.

    Returns
    -------
    Reconstruction

    Raises
    ------
    ConfigError, DataError, CheckpointError, TraceError
        The model, the images or the masks cannot be used; nothing is changed then.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    >>> mask, bias = torch.ones(8, 3, 3, 3), torch.ones(8)
    >>> mask[:3] = bias[:3] = 0
    >>> masks = {"0": {"weight": mask, "bias": bias}}
    >>> done = reconstruct(net, masks, torch.randn(64, 3, 8, 8))
    >>> done.refitted, done.error < done.without
    (True, True)
    """
    check_model(model)
    if compat.is_wrapped(model):
        raise ConfigError("the model is still wrapped by a pruner: call pruner.unwrap_model()")
    asked = settings or ReconstructSettings()
    images = Calibration.of(calibration).typed_for(model)
    job = _Job(model, masks, images, asked, seed, aim)
    chosen, state = job.best()
    if state is not None:
        job.keep(state)
    _logger.info(str(chosen))
    return chosen


class _Job:
    """One reconstruction under way."""

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Mapping[str, Tensor | None]],
        calibration: Calibration,
        settings: ReconstructSettings,
        seed: int,
        aim: Mapping[str, Tensor] | None,
    ) -> None:
        self.model, self.calibration, self.settings, self.seed = model, calibration, settings, seed
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        own = state_of(model)
        self.dense = own if aim is None else {name: aim[name].to(t) for name, t in own.items()}
        graph = trace_images(model, calibration.inputs[:1].to(self.device))
        asked = read_masks(model, masks, graph.aliases)
        self.kept, _ = extend_masks(graph, map_channels(graph), asked, Wiring(graph, asked))
        self.per_image = 2 * 4 * Replay(graph).most_elements()
        #: Images at a time for norms' statistics, which see them together, and for outputs.
        self.together, self.apart = (
            min(calibration.batch_size, max(2, 2 * most // (self.per_image or 1)))
            for most in (2 * _BATCH, _LIGHT)
        )
        self.left: dict[str, str] = {}
        self.masked = masked_state(own, self.kept)
        self.work = copy.deepcopy(model)

    def best(self) -> tuple[Reconstruction, State | None]:
        """Find what serves best on images held out, and do that with all of them."""
        if self.settings.recalibrate_bn is not True and all(
            torch.equal(tensor, self.dense[name]) for name, tensor in self.masked.items()
        ):  # nothing is removed: it is the dense network
            return Reconstruction(0.0, 0.0, False, False, {}, len(self.calibration)), None
        held = self.calibration.inputs[1::2].split(self.apart)
        self._load(self.dense)
        target = outputs_of(self.work, held)

        def off(state: State) -> float:
            self._load(state)
            return distance(target, outputs_of(self.work, held))

        seen, everything = self.calibration.inputs[0::2], self.calibration.inputs
        found: dict[tuple[bool, bool], float] = {}
        for refit in (False, True):
            # By half of the images; what is kept is fitted anew, with all.
            state = self._fitted(seen, quick=True) if refit else self.masked
            for renew in self._renewals():
                found[refit, renew] = off(self._renewed(state, seen) if renew else state)
        without = found[False, False] if (False, False) in found else off(self.masked)
        refit, renew = min(found, key=found.__getitem__)
        forced = self.settings.recalibrate_bn is True
        best: State | None = None
        if forced or found[refit, renew] < without:
            # It was a quick fit that decided, and this is another: each part has to help it, too.
            best = self._fitted(everything) if refit else self.masked
            if renew:
                renewed = self._renewed(best, everything)
                renew = forced or not refit or off(renewed) < off(best)
                best = renewed if renew else best
            if not forced and not off(best) < without:
                best = None
        if best is None:
            refit, renew = False, False
        error = without if best is None else found[refit, renew]
        outcome = Reconstruction(
            without, error, refit, renew, dict(self.left), len(self.calibration)
        )
        return outcome, best

    def keep(self, state: State) -> None:
        """Write the weights that masks leave, and the buffers, into the model."""
        with torch.no_grad():
            for name, tensor in state_of(self.model).items():
                kept = self.kept.get(name)
                new = state[name].to(tensor)
                tensor.copy_(
                    new if kept is None else torch.where(kept.to(self.device), new, tensor)
                )

    def _renewals(self) -> tuple[bool, ...]:
        asked = self.settings.recalibrate_bn
        norms = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
            for m in self.model.modules()
        )
        # Of two images one is held out, and a norm may not know a variance of one.
        if not norms or (asked == "auto" and len(self.calibration) == 2):
            return (False,)
        return (False, True) if asked == "auto" else (bool(asked),)

    def _fitted(self, images: Tensor, *, quick: bool = False) -> State:
        batches = self._batches(images)
        asked = self.settings.ridge
        # Whether to fit at all can be told by one.
        ridges = RIDGES[1:2] if quick else RIDGES
        with evaluating(self.model):
            walk = Walk(
                trace(self.model, batches[0]),
                batches,
                ridges=ridges if asked is None else (asked,),
                memory=_MEMORY,
                seed=self.seed,
                places=self.settings.places,
                quick=quick,
                progress=self.calibration.progress,
            )
            state = walk.refit(self.dense, self.kept, self.masked)
        self.left = walk.left
        return state

    def _batches(self, images: Tensor) -> Sequence[Tensor]:
        """All images at once where memory allows, else equal batches; sizes are traced."""
        need = len(images) * self.per_image
        count = 1 if need <= _MEMORY else -(-need // _BATCH)
        size = max(1, len(images) // count)
        return [b.to(self.device) for b in images[: size * (len(images) // size)].split(size)]

    def _renewed(self, state: State, images: Tensor) -> State:
        self._load(state)
        # In equal parts of two images at least: of one a norm may not know a variance.
        parts = min(-(-len(images) // self.together), max(1, len(images) // 2))
        recalibrate_bn(self.work, images.tensor_split(parts))
        return {name: tensor.clone() for name, tensor in state_of(self.work).items()}

    def _load(self, state: State) -> None:
        with torch.no_grad():
            for name, tensor in state_of(self.work).items():
                tensor.copy_(state[name])
