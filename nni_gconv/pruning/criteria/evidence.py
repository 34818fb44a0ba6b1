"""Passes over calibration images that leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_gconv import compat
from nni_gconv.errors import ConfigError, DataError
from nni_gconv.modes import drawing_alike, evaluating
from nni_gconv.pruning.calibration import Calibration, running

#: ``loss(outputs, labels)``: the mean over images, or one number for each.
Loss = Callable[[Any, Tensor], Tensor]


class Passes:
    """Runs calibration images through a model.

    Parameters
    ----------
    model : nn.Module
        Wrapped by NNI or not.
    images : Calibration
    loss : callable, optional
        Default: cross entropy.
    masks : mapping, optional
        Masks that hold and that no wrapper applies.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Calibration,
        loss: Loss | None,
        masks: Mapping[str, Mapping[str, Tensor]] | None,
    ) -> None:
        self._model, self._images, self._masks = model, images.typed_for(model), masks or {}
        self._loss = loss or _cross_entropy
        self._device = next(model.parameters()).device

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    @contextmanager
    def hooked(
        self, hooks: Mapping[nn.Module, Callable[[nn.Module, Tensor, Tensor], Tensor | None]]
    ) -> Iterator[None]:
        """Let functions of (layer, input, output) look at layers, or put another output there."""
        handles = [
            module.register_forward_hook(lambda m, args, out, hook=hook: hook(m, args[0], out))
            for module, hook in hooks.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def outputs(self) -> Iterator[int]:
        """Run batch after batch without gradients; yield the number of images of each."""
        with self._undisturbed(), torch.no_grad():
            for images in self._images.inputs.split(self._images.batch_size):
                self._run(images)
                yield len(images)

    def losses(self, trained: Sequence[Tensor] = ()) -> Iterator[tuple[Tensor, int]]:
        """Run batch after batch; yield the sum of the images' losses, and their number.

        Parameters
        ----------
        trained : sequence of Tensor
            Parameters that shall get gradients; no other does.
        """
        labels = self._images.labels
        if labels is None:
            raise ConfigError("calibration: needs labels: give batches of (images, labels)")
        size = self._images.batch_size
        with self._undisturbed(), torch.enable_grad():
            for parameter in trained:
                parameter.requires_grad_(True)
            for images, wanted in zip(
                self._images.inputs.split(size), labels.split(size), strict=True
            ):
                loss = self._loss(self._run(images), wanted.to(self._device))
                if not (isinstance(loss, Tensor) and loss.requires_grad):
                    raise ConfigError("loss: does not depend on the network's outputs")
                if loss.dim() == 0:
                    loss = loss * len(images)
                yield loss.sum(), len(images)

    def _run(self, images: Tensor) -> Any:
        with running(self._model, images):
            return self._model(images.to(self._device))

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Evaluation mode, no gradients for parameters, masks given; then all as it was."""
        model = self._model
        parameters = list(model.parameters())
        flags = [p.requires_grad for p in parameters]
        buffers = {m: dict(m._buffers) for m in model.modules() if not compat.is_scripted(m)}
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(drawing_alike(0, [self._device]))
            stack.enter_context(self._masked())
            try:
                for parameter in parameters:
                    parameter.requires_grad_(False)
                yield
            finally:
                for parameter, flag in zip(parameters, flags, strict=True):
                    parameter.requires_grad_(flag)
                for module, kept in buffers.items():
                    module._buffers.clear()
                    module._buffers.update(kept)

    @contextmanager
    def _masked(self) -> Iterator[None]:
        modules = dict(self._model.named_modules(remove_duplicate=False))
        changed: list[tuple[Tensor, Tensor]] = []
        try:
            for name, targets in self._masks.items():
                for target, mask in targets.items():
                    parameter = compat.trained_weight(modules[name], target)
                    if mask is not None and parameter is not None:
                        changed.append((parameter, parameter.detach().clone()))
                        parameter.data.mul_(mask.to(parameter.device))
            yield
        finally:
            for parameter, before in changed:
                parameter.data.copy_(before)


def _cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or labels.dim() != 1:
        shown = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(
            f"loss: cross entropy takes outputs (images, classes) and one label an image, not "
            f"{shown} and {tuple(labels.shape)}: give loss=, a function of outputs and labels"
        )
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= outputs.shape[1]:
        raise DataError(
            f"calibration: labels must be whole numbers from 0 to {outputs.shape[1] - 1}, one for "
            "each output of the network"
        )
    return F.cross_entropy(outputs, labels, reduction="none")
