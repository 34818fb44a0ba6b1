"""A method of a user's own: attributes after the base's constructor, every hook overridden."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from nni_gconv import register_pruner
from nni_gconv.pruning import ChannelOptions, ChannelPruner


@register_pruner("toy")
class ToyPruner(ChannelPruner):
    """Scores channels by a power sum of their weights."""

    class Options(ChannelOptions):
        """Its one option."""

        power: float = Field(1.0, gt=0, le=8, description="Exponent of each weight.")

    options: Options

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen = []  # a hook that ran before would miss it

    def rank(self, filters):
        self.seen.append("rank")
        return self.combine([f.abs().pow(self.options.power).sum(1) for f in filters])

    def state_dict(self):
        return {**super().state_dict(), "seen": len(self.seen)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.seen = ["resumed"] * state["seen"]


def _watched(name):
    def hook(self, *args, **options):
        self.seen.append(name)
        return getattr(super(ToyPruner, self), name)(*args, **options)

    return hook


for _name in ("channel_scores", "combine", "request", "settle", "voters", "masks_of",
              "prepare_training", "begin_training", "before_epoch", "before_step", "after_step",
              "after_epoch", "finish_training", "renew_masks", "check_training"):  # fmt: skip
    setattr(ToyPruner, _name, _watched(_name))
