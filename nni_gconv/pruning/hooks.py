"""What a pruner does while NNI's evaluator trains: hooks around steps and epochs.

A pruner derives from :class:`~nni_gconv.pruning.pruner.TrainedPruner` (all do) and overrides the
hooks it needs. They run in this order; ``[..]`` marks what a resumed training leaves out::

    prepare_training()            optimizer made, nothing restored yet: split groups, fill caches
    [begin_training()]            weights are those training begins with, in every process
    before_epoch(0)
        before_step()             gradients are there: averaged, unscaled, clipped
        after_step()              weights have moved
        ...
    after_epoch(0)                before the epoch is evaluated and saved
    epoch_metrics()               numbers for the record of that epoch
    ...
    finish_training()             masks that hold from now on

Operations in hooks are not recorded for gradients. Masks, weights and the optimizer's state are in
the checkpoint; what else a hook remembers belongs into ``state_dict()``. Random numbers come from a
generator of the pruner's own, not from torch's global one, which every epoch seeds anew.

>>> import nni
>>> import torch
>>> from nni.compression import TorchEvaluator
>>> from nni_gconv.pruning.channel_pruner import ChannelPruner
>>> class ShrinkingPruner(ChannelPruner):
...     def rank(self, filters):
...         return filters[0].norm(dim=1)
...     def after_step(self):
...         super().after_step()
...         self._target_spaces["0"]["weight"].target.mul_(1 - 1e-3)
...     def after_epoch(self, epoch):
...         self.renew_masks()
>>> def train(model, optimizer, training_step, scheduler, max_steps, max_epochs):
...     for _ in range(10 * max_epochs):
...         optimizer.zero_grad()
...         training_step(torch.randn(4, 3, 8, 8), model).backward()
...         optimizer.step()
>>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
>>> sgd = nni.trace(torch.optim.SGD)(net.parameters(), lr=0.1)
>>> evaluator = TorchEvaluator(train, sgd, lambda batch, model: model(batch).square().mean(),
...                            dummy_input=torch.zeros(1, 3, 8, 8))
>>> evaluator.steps_per_epoch = 10  # an evaluator of make_evaluator() knows it
>>> pruner = ShrinkingPruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}], evaluator)
>>> _, masks = pruner.compress(max_epochs=2)
>>> pruner.clock
Clock(steps_per_epoch=10, epochs=2, step=20, epoch=2)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from nni.compression.base.compressor import Pruner
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from nni_gconv import compat
from nni_gconv.errors import ConfigError
from nni_gconv.pruning.plain_loop import PlainLoop


@dataclass
class Clock:
    """Where a training stands.

    Attributes
    ----------
    steps_per_epoch, epochs : int or None
        Length of an epoch and of the training; None where the evaluator does not tell.
    step, epoch : int
        Steps and epochs that are finished.
    """

    steps_per_epoch: int | None = None
    epochs: int | None = None
    step: int = 0
    epoch: int = 0

    @property
    def steps(self) -> int | None:
        """Steps of the whole training, if it is known."""
        if self.steps_per_epoch is None or self.epochs is None:
            return None
        return self.steps_per_epoch * self.epochs


class TrainingHooks(Pruner):
    """Hooks around the steps and epochs of NNI's evaluators, which do nothing here.

    Attributes
    ----------
    clock : Clock
        Steps and epochs of the training that runs or has run.
    in_training : bool
        Whether an evaluator trains the model, from :meth:`prepare_training` to
        :meth:`finish_training`.
    interval_steps, total_times : int
        Masks are renewed every so many steps, so many times; -1: at the end alone. NNI's
        ``LinearPruner`` and ``AGPPruner`` set them.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
    ) -> None:
        self.interval_steps, self.total_times = -1, 1
        self.clock, self.in_training = Clock(), False
        self._since, self._renewed = 0, 0
        #: Steps and epochs that this pruner's own compress() was asked for, while it lasts.
        self._length: tuple[int | None, int | None] | None = None
        self._counts, self._begun = False, False
        self._gradient_hook: RemovableHandle | None = None
        super().__init__(model, config_list, evaluator, existed_wrappers)

    def _validate_config(self) -> None:
        """Do without NNI's schema, milliseconds a layer: entries are made of checked ones."""

    @property
    def needs_epochs(self) -> bool:
        """Whether an evaluator that does not say ``steps_per_epoch`` is of no use."""
        return False

    # -- hooks ------------------------------------------------------------------------------------

    def prepare_training(self) -> None:
        """Get ready; the optimizer is there, a checkpoint is not restored yet.

        Parameter groups may be split here, every key of the old group copied.
        """

    def begin_training(self) -> None:
        """Act on the weights before the first step; not called where a resume goes on."""

    def before_epoch(self, epoch: int) -> None:
        """Act before the steps of an epoch, counted from 0."""

    def before_step(self) -> None:
        """Act on gradients: they are averaged over processes, unscaled and clipped."""

    def after_step(self) -> None:
        """Act on weights that have just moved."""

    def after_epoch(self, epoch: int) -> None:
        """Act after the steps of an epoch, before it is evaluated and its checkpoint written."""

    def epoch_metrics(self) -> dict[str, float]:
        """Return numbers for the record and the log of the epoch that has just ended."""
        return {}

    def finish_training(self) -> None:
        """Make the final masks; after a resume of a finished training as well."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold besides weights, masks and the optimizer's state.

        Tensors, numbers, words, lists and dicts of them.
        """
        return {
            "step": self.clock.step,
            "epoch": self.clock.epoch,
            "since": self._since,
            "renewed": self._renewed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.clock.step, self.clock.epoch = state["step"], state["epoch"]
        self._since, self._renewed = state["since"], state["renewed"]

    # -- a loop of one's own -----------------------------------------------------------------------

    @contextmanager
    def training(
        self,
        optimizer: Optimizer | None = None,
        *,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> Iterator[PlainLoop]:
        """Act while a training loop of your own runs in the block; its end makes the masks.

        Parameters
        ----------
        optimizer : Optimizer, optional
            The one whose steps count; it may be made before or after the pruner. Default: the first
            that takes a step with parameters of the model.
        epochs, steps_per_epoch : int, optional
            How long the training is, in steps of that optimizer; for methods and schedules that
            need it (a ConfigError says so).

        Yields
        ------
        PlainLoop
            Its ``steps`` are those that were taken.

        Raises
        ------
        ConfigError
            The optimizer does not train this model, nothing took a step, or the method has to know
            how long the training is.

        Examples
        --------
        >>> from nni_gconv import SlimmingPruner
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> x = torch.randn(4, 3, 8, 8)
        >>> pruner = SlimmingPruner(net, [{"op_names": ["0"]}], budget={"macs": 0.5}, dummy_input=x)
        >>> with pruner.training(optimizer):
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         net(x).square().mean().backward()
        ...         optimizer.step()
        >>> masks = pruner.get_masks()
        >>> int(masks["0"]["bias"].sum()) < 8
        True
        """
        known = self.evaluator if isinstance(self.evaluator, PlainLoop) else None
        if steps_per_epoch is None and known is not None:
            steps_per_epoch = known.steps_per_epoch
        if self.needs_epochs and (epochs is None or steps_per_epoch is None):
            raise ConfigError(
                f"{type(self).__name__}: has to know how long the training is: give epochs= and "
                "steps_per_epoch=len(train_loader)"
            )
        loop = PlainLoop(optimizer, steps_per_epoch=steps_per_epoch)
        with self.acting_in(loop, epochs):
            yield loop

    @contextmanager
    def acting_in(self, loop: PlainLoop, epochs: int | None) -> Iterator[None]:
        """The same with a loop that was made already.

        Parameters
        ----------
        loop : PlainLoop
            What is known of the training.
        epochs : int, optional
            How long it is.
        """
        self._length = (None, epochs)
        loop.bind_model(self.bound_model)
        try:
            self._fuse_preprocess(loop)
            yield
            if not loop.steps:
                raise ConfigError(
                    "training: no optimizer with parameters of the model took a step in the block"
                )
            with torch.no_grad():
                self._fuse_postprocess(loop)
        finally:
            loop.unbind_model()
            self._length = None
            self._leave_training()
        self._final_masks_made()

    def _final_masks_made(self) -> None:
        """What comes after the final masks, trained for or made at once."""

    # -- what calls them --------------------------------------------------------------------------

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that trains the wrapped model, from :meth:`prepare_training` on."""
        found = compat.evaluator_optimizer(self.evaluator)
        if found is None:
            raise ConfigError("evaluator: has no optimizer before the training begins")
        return found

    def _fusion_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        self._length = (max_steps, max_epochs)
        super()._fusion_compress(max_steps, max_epochs)
        self._length = None

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator  # may be that of a pruner which drives this one
        per_epoch = getattr(evaluator, "steps_per_epoch", None)
        if self.needs_epochs and per_epoch is None:
            raise ConfigError(
                f"{type(self).__name__}: the evaluator does not say how long an epoch is: set "
                "evaluator.steps_per_epoch = len(train_loader)"
            )
        _, epochs = self._length or (None, None)
        if epochs is None and per_epoch is not None and self.interval_steps > 0:
            # Driven by a scheduling pruner of NNI, which does not hand on how long it trains.
            epochs = -(-self.interval_steps * self.total_times // per_epoch)
        self.clock = Clock(per_epoch, epochs)
        self._since, self._renewed = 0, 0
        self.in_training = True
        # Our own loop tells when an epoch begins; elsewhere steps are counted.
        self._counts, self._begun = not hasattr(evaluator, "patch_epochs"), False
        compat.let_lightning_stop(evaluator)
        evaluator.patch_optimizer_step([self._on_step], [self._on_stepped])
        if not self._counts:
            evaluator.patch_epochs(self._on_epoch, self._on_epoch_end)
            evaluator.track(self)
            self._prepare()
        elif compat.evaluator_optimizer(evaluator) is not None:
            self._begin_counting()

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        self.finish_training()
        self._leave_training()

    def _leave_training(self) -> None:
        self.in_training = False
        if self._gradient_hook is not None:
            self._gradient_hook.remove()
            self._gradient_hook = None

    def _prepare(self) -> None:
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if not any(id(p) in trained for p in self.bound_model.parameters()):
            raise ConfigError("evaluator: its optimizer has none of this model's parameters")
        self._gradient_hook = self.optimizer.register_step_pre_hook(self._on_gradients)
        self.prepare_training()

    @torch.no_grad()
    def _begin_counting(self) -> None:
        self._begun = True
        self._prepare()
        self.begin_training()
        if self.clock.steps_per_epoch is not None:
            self.before_epoch(0)

    @torch.no_grad()
    def _on_epoch(self, epoch: int, epochs: int) -> None:
        self.clock.epochs = epochs
        if epoch == 0:
            self.begin_training()
        self.before_epoch(epoch)

    def _on_step(self) -> None:
        if self._counts and not self._begun:
            self._begin_counting()  # a Lightning trainer makes its optimizer when it begins to fit

    def _on_gradients(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the hook where the gradients are there: in Lightning a closure computes them."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        hook = torch.no_grad()(self.before_step)
        if closure is None:
            return hook()

        def computing() -> Any:
            loss = closure()
            hook()
            return loss

        return args[:1], {**kwargs, "closure": computing}

    @torch.no_grad()
    def _on_stepped(self) -> None:
        clock = self.clock
        clock.step += 1
        self.after_step()
        if self._counts and clock.steps_per_epoch and clock.step % clock.steps_per_epoch == 0:
            self._on_epoch_end(clock.epoch)
            if clock.epochs is None or clock.epoch < clock.epochs:
                self.before_epoch(clock.epoch)

    @torch.no_grad()
    def _on_epoch_end(self, epoch: int, _: int | None = None) -> None:
        self.clock.epoch = epoch + 1
        if self.clock.steps_per_epoch is not None:
            # Steps that a gradient scaler skipped are steps of the schedule all the same.
            self.clock.step = self.clock.epoch * self.clock.steps_per_epoch
        self.after_epoch(epoch)
