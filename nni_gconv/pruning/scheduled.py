"""Making masks during training by a schedule in epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.pruning.pruner import TrainedPruner
from nni_gconv.pruning.schedule import Schedule

__all__ = ["ScheduledPruner"]


class ScheduledPruner(TrainedPruner):
    """A pruner whose masks are made once after training, or by a schedule while it lasts.

    Parameters
    ----------
    model, config_list, evaluator, existed_wrappers
        As in NNI.
    schedule : Schedule, str or mapping, default "one-shot"
        See :mod:`nni_gconv.pruning.schedule`.

    Attributes
    ----------
    share : float
        Share of its goal that :meth:`generate_masks` has to reach.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        *,
        schedule: Schedule | Mapping[str, Any] | str = "one-shot",
    ) -> None:
        self.schedule = Schedule.parse(schedule)
        self.share = 1.0
        super().__init__(model, config_list, evaluator, existed_wrappers)

    @property
    def scheduled(self) -> bool:
        """Whether masks are made at borders of epochs; NNI's scheduling pruners go before ours."""
        return self.schedule.name != "one-shot" and self.interval_steps < 0

    @property
    def needs_epochs(self) -> bool:
        """A schedule is in epochs."""
        return self.scheduled

    def check_training(self, epochs: int) -> None:
        """Refuse a schedule that does not fit into the training."""
        super().check_training(epochs)
        if self.scheduled:
            self.schedule.check(epochs)

    def begin_training(self) -> None:
        """Make the masks that the schedule asks for before the first step."""
        if self.scheduled:
            if self.clock.epochs is None:
                raise ConfigError(f"schedule {self.schedule.name}: give compress() max_epochs")
            self.check_training(self.clock.epochs)
            self._at_border(0)

    def after_epoch(self, epoch: int) -> None:
        """Make the masks that the schedule asks for after an epoch."""
        if self.scheduled:
            self._at_border(epoch + 1)

    def finish_training(self) -> None:
        """Make the final masks, unless the schedule has brought them to the goal."""
        clock = self.clock
        if not (self.scheduled and clock.epoch and clock.epoch == clock.epochs):
            super().finish_training()

    def _at_border(self, border: int) -> None:
        share = self.schedule.share(border, self.clock.epochs or 0)
        if share is not None:
            self.share = share
            self.renew_masks()
            self.share = 1.0
