"""The base of all pruners: options, a schedule, and masks that hold in every process.

What happens when is in :mod:`nni_gconv.pruning.hooks`; a method derives from
:class:`TrainedPruner` by way of :class:`~nni_gconv.pruning.channel_pruner.ChannelPruner` (it scores
channels) or :class:`~nni_gconv.pruning.group_pruner.GroupPruner` (it splits layers in groups).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import Tensor, nn

from nni_gconv import compat
from nni_gconv.checked import checked
from nni_gconv.errors import ConfigError, OptionError, check_layers
from nni_gconv.graph import example_input
from nni_gconv.pruning.hooks import TrainingHooks
from nni_gconv.pruning.options import PrunerOptions
from nni_gconv.pruning.positions import check_positions
from nni_gconv.pruning.reconstruction import Reconstruction, reconstruct
from nni_gconv.pruning.schedule import Schedule
from nni_gconv.pruning.selection.earlier_masks import joined_masks
from nni_gconv.training import several_processes

_logger = logging.getLogger(__name__)

Masks = dict[str, dict[str, Tensor]]


class TrainedPruner(TrainingHooks):
    """Base of pruners that make masks at once, after training, or by a schedule while it lasts.

    A subclass overrides hooks and calls ``super()`` in those that this class fills
    (``prepare_training``, ``begin_training``, ``after_step``, ``after_epoch``, ``finish_training``,
    ``state_dict``, ``load_state_dict``). No constructor of these bases calls what a subclass
    overrides: it may set its attributes after ``super().__init__()``.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers
        As in NNI.
    **options
        The fields of the class's ``Options``.

    Attributes
    ----------
    options : PrunerOptions
        As they were given, checked.
    schedule : Schedule
        When masks are made.
    share : float
        Share of its goal that :meth:`generate_masks` has to reach now.

    Raises
    ------
    OptionError
        An unknown option; both a ConfigError and a TypeError.
    ConfigError
        A value that is not allowed.
    """

    #: What may be given by keyword: a class of declared fields.
    Options: type[PrunerOptions] = PrunerOptions
    options: PrunerOptions
    #: Whether the constructor looks at weights: then one is made anew once they are trained.
    reads_weights = True
    #: Called in :meth:`compress` once the final masks act, before weights are fitted to them.
    when_masked: Callable[[], None] | None = None
    #: What the reconstruction came to, after :meth:`compress`.
    reconstruction: Reconstruction | None = None
    #: Whether training with masks begins with a network that reconstruction can aim at.
    begins_trained = True
    #: That network; None: no masks acted while it was trained, so it has what they will hide.
    _unmasked: Mapping[str, Tensor] | None = None
    #: Masks that hold beside those made here.
    _given: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse arguments that are not where NNI has them, before anything is done."""
        check_positions(cls, args, kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        **options: Any,
    ) -> None:
        self.options = read_options(type(self), options)
        self.schedule, self.share = self.options.schedule or Schedule("one-shot"), 1.0
        if self.options.reconstruct is not None and self.options.calibration is None:
            raise ConfigError(
                "reconstruct: needs calibration= (in a recipe prune.calibration: {images: 1024})"
            )
        self._parameter_order = compat.parameter_order(model)
        parameters = compat.own_parameters(model)
        super().__init__(model, config_list, evaluator, existed_wrappers)
        compat.keep_parameters(self._module_wrappers, parameters)
        compat.lighten_wrappers(self._module_wrappers)
        compat.explain_fusion()

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Show the options one by one in ``help()`` and in editors."""
        super().__init_subclass__(**arguments)
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    # -- hooks that act here ----------------------------------------------------------------------

    @property
    def scheduled(self) -> bool:
        """Whether masks are made at epoch boundaries; NNI's scheduling pruners go before ours."""
        return self.schedule.name != "one-shot" and self.interval_steps < 0

    @property
    def needs_epochs(self) -> bool:
        """A schedule is in epochs."""
        return self.scheduled

    def check_training(self, epochs: int) -> None:
        """Raise a ConfigError now if a training of so many epochs (0: none) could not succeed."""
        if self.scheduled:
            self.schedule.check(epochs)

    def prepare_training(self) -> None:
        """Keep the dense network, to which weights may be fitted in the end."""
        super().prepare_training()
        if self.options.reconstruct is not None:
            self._unmasked = compat.unwrapped_state(self.bound_model)

    def begin_training(self) -> None:
        """Make the masks that the schedule asks for before the first step."""
        if self.scheduled:
            if self.clock.epochs is None:
                raise ConfigError(f"schedule {self.schedule.name}: give compress() max_epochs")
            self.check_training(self.clock.epochs)
            self._at_boundary(0)

    def after_step(self) -> None:
        """Renew the masks every ``interval_steps``."""
        self._since += 1
        if self._since == self.interval_steps and self._renewed < self.total_times:
            self.renew_masks()
            self._since, self._renewed = 0, self._renewed + 1

    def after_epoch(self, epoch: int) -> None:
        """Make the masks that the schedule asks for after an epoch."""
        if self.scheduled:
            self._at_boundary(epoch + 1)

    def finish_training(self) -> None:
        """Make the final masks, unless a schedule has brought them to the goal."""
        clock = self.clock
        done = self.scheduled and clock.epoch and clock.epoch == clock.epochs
        if self.interval_steps < 0 and not done:
            self.renew_masks()

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        driven = self._length is None  # compress() of another pruner trains
        for name in ("masks", "reconstruct"):
            if driven and getattr(self.options, name) is not None:
                raise ConfigError(
                    f"{name}: is lost where another pruner drives this one; give a schedule= and "
                    "call this one's compress()"
                )
        super()._fuse_preprocess(evaluator)

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        spaces = [space for targets in self._target_spaces.values() for space in targets.values()]
        if all(space.mask is None or bool(space.mask.all()) for space in spaces):
            self._unmasked = None
        super()._fuse_postprocess(evaluator)

    def _at_boundary(self, boundary: int) -> None:
        share = self.schedule.share(boundary, self.clock.epochs or 0)
        if share is not None:
            self.share = share
            self.renew_masks()
            self.share = 1.0

    # -- what hooks use ---------------------------------------------------------------------------

    def split_groups(self, parameters: Iterable[Tensor], **changes: Any) -> None:
        """Give parameters groups of their own in the optimizer; for :meth:`prepare_training`.

        Parameters
        ----------
        parameters : iterable of Tensor
            Some of those that are trained.
        **changes
            Settings that differ from those of the group they leave, such as ``weight_decay=0.0``.
        """
        compat.split_parameter_groups(self.evaluator, parameters, **changes)

    def step_size(self, group: Mapping[str, Any]) -> float:
        """How far a constant gradient of 1 moves a parameter in one step, in the long run.

        Parameters
        ----------
        group : mapping
            One of the optimizer's parameter groups.
        """
        rate = float(group["lr"])
        if isinstance(self.optimizer, torch.optim.SGD):
            rate *= (1 - group["dampening"] * (group["momentum"] > 0)) / (1 - group["momentum"])
        return rate

    def renew_masks(self) -> None:
        """Make masks from the weights as they are, the same in every process."""
        self.update_masks(self.generate_masks())
        if several_processes():
            for targets in self._target_spaces.values():
                for space in targets.values():
                    if space.mask is not None:
                        dist.broadcast(space.mask, src=0)

    def clear_masked(self) -> None:
        """Zero what is masked: weights, and what the optimizer has gathered for them."""
        with torch.no_grad():
            for targets in self._target_spaces.values():
                for space in targets.values():
                    if space.mask is None or not isinstance(space.target, nn.Parameter):
                        continue
                    gathered = self.optimizer.state.get(space.target, {}).values()
                    for tensor in (space.target, *gathered):
                        if isinstance(tensor, Tensor) and tensor.shape == space.mask.shape:
                            tensor.mul_(space.mask)

    # -- NNI's interface --------------------------------------------------------------------------

    def compress(
        self, max_steps: int | None = None, max_epochs: int | None = None
    ) -> tuple[nn.Module, Masks]:
        """Make the masks.

        Parameters
        ----------
        max_steps, max_epochs : int, optional
            Train so long with the evaluator; without either the masks are made at once.

        Returns
        -------
        model : nn.Module
            The wrapped, masked model.
        masks : dict of str to dict of str to Tensor
            ``{module: {target: 0/1 tensor}}``.
        """
        for name, number in (("max_steps", max_steps), ("max_epochs", max_epochs)):
            whole = isinstance(number, int) and not isinstance(number, bool) and number >= 0
            if number is not None and not whole:
                raise ConfigError(f"compress: {name}: {number!r} is not a whole number from 0")
        if (max_steps is not None or max_epochs is not None) and self.evaluator is None:
            raise ConfigError("compress: max_steps and max_epochs need an evaluator=")
        if max_steps is None and max_epochs is None:
            # NNI would ask a pruner made by from_compressor() for an evaluator, to train both.
            self._single_compress(None, None)
        else:
            super().compress(max_steps, max_epochs)
        self._final_masks_made()
        return self.bound_model, self.get_masks()

    def _final_masks_made(self) -> None:
        super()._final_masks_made()
        if self.when_masked is not None:
            self.when_masked()
        self._reconstruct()

    def _reconstruct(self) -> None:
        """Fit the weights that the final masks leave, if that was asked for."""
        if self.options.reconstruct is None:
            return
        if self._unmasked is not None and not self.begins_trained:
            _logger.warning("reconstruct: left out: there is no dense network to come near to")
            return
        with self.unwrapped() as model:
            self.reconstruction = reconstruct(
                model,
                self.get_masks(),
                self.options.calibration,
                settings=self.options.reconstruct,
                aim=self._unmasked,
            )
        self._unmasked = None
        if several_processes():
            for tensor in [*self.bound_model.parameters(), *self.bound_model.buffers()]:
                dist.broadcast(tensor.detach(), src=0)

    @contextmanager
    def unwrapped(self) -> Iterator[nn.Module]:
        """The model without wrappers for a while; what is done to its weights is kept."""
        self.unwrap_model()
        try:
            yield self.bound_model
        finally:
            self.wrap_again()

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        if max_steps is None and max_epochs is None:
            self.renew_masks()
        else:
            self._fusion_compress(max_steps, max_epochs)

    def unwrap_model(self) -> None:
        """Give the model's modules back as they were, with the weights they have now."""
        super().unwrap_model()
        compat.restore_modules(self._module_wrappers)
        compat.restore_parameter_order(self.bound_model, self._parameter_order)

    def wrap_again(self) -> None:
        """Wrap the model that :meth:`unwrap_model` gave back, with the weights it has now."""
        compat.take_over_weights(self._module_wrappers)
        self.wrap_model()

    def get_masks(self) -> Masks:
        """Return the masks, together with those given."""
        # NNI's own dict makes entries of its own accord, and cannot be read back from a file.
        masks: Masks = {module: dict(targets) for module, targets in super().get_masks().items()}
        return joined_masks(self._given, masks) if self._given else masks


def read_options(kind: type[TrainedPruner], given: Mapping[str, Any]) -> Any:
    """Check options that were given to a pruner's class; return its ``Options``."""
    try:
        return checked(kind.Options, given)
    except OptionError as error:
        raise OptionError(f"{kind.__name__}: {error}") from None


def unwrapped_input(
    model: nn.Module,
    evaluator: Evaluator | None,
    options: PrunerOptions,
    *,
    remedy: str,
    counted: bool = False,
) -> Any:
    """Return example arguments of a model, which has to be unwrapped.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    evaluator : Evaluator, optional
        Its ``dummy_input`` is taken where the options have none.
    options : PrunerOptions
        Those given.
    remedy : str
        What to do with a model that another pruner has wrapped.
    counted : bool, default False
        Whether a budget needs an input that was given, not one that was found to fit.
    """
    check_layers(model)
    if compat.is_wrapped(model):
        raise ConfigError(f"the model is wrapped by another pruner: {remedy}")
    given = options.dummy_input
    if given is None and evaluator is not None:
        given = compat.evaluator_input(evaluator)
    if given is None and counted and options.budget is not None:
        raise ConfigError("budget: needs dummy_input= to count what the model costs")
    return example_input(model) if given is None else given


def own_arguments(kind: type[TrainedPruner]) -> dict[str, inspect.Parameter]:
    """Keyword arguments that constructors of user-made classes take beside the options."""
    found: dict[str, inspect.Parameter] = {}
    for one in kind.__mro__[: kind.__mro__.index(TrainedPruner)]:
        if "__init__" in vars(one):
            for name, given in inspect.signature(vars(one)["__init__"]).parameters.items():
                if given.kind is inspect.Parameter.KEYWORD_ONLY:
                    found.setdefault(name, given)
    return found


def _signature(kind: type[TrainedPruner]) -> inspect.Signature:
    """Signature of the constructor with every option in its place."""
    nni = list(inspect.signature(TrainedPruner.__init__).parameters.values())[1:5]
    own = own_arguments(kind)
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(),
            annotation=field.annotation,
        )
        for name, field in kind.Options.model_fields.items()
        if name not in own
    ]
    return inspect.Signature([*nni, *own.values(), *options])
