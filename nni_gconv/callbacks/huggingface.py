"""Pruning in the Hugging Face Trainer: ``Trainer(..., callbacks=[PruningCallback(...)])``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nni_gconv.callbacks.session import PruningSession
from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ConfigError(
            "PruningCallback needs transformers: pip install 'nni-gconv[transformers]'"
        ) from error


class PruningCallback(PruningSession, TrainerCallback):
    """Prune what a Hugging Face Trainer trains; the model is small when ``train`` returns.

    Parameters as for :class:`~nni_gconv.callbacks.session.PruningSession`; ``x`` is needed, such as
    ``{"pixel_values": torch.zeros(1, 3, 224, 224)}``.

    Examples
    --------
    ::

        callback = PruningCallback("fpgm", {"macs": 0.5}, x, schedule="cubic")
        Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Wrap the model."""
        if state.global_step:
            raise ConfigError("PruningCallback: cannot go on from a checkpoint")
        if args.load_best_model_at_end:
            raise ConfigError(
                "PruningCallback: load_best_model_at_end would bring back weights that other masks "
                "belong to; leave it out"
            )
        batches = len(more["train_dataloader"])
        steps = math.ceil(batches / args.gradient_accumulation_steps)
        optimizer = more["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # within accelerate's own
        self._epoch = 0
        self.begin(more["model"], optimizer, math.ceil(state.num_train_epochs), steps)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """An epoch begins."""
        self.begin_epoch(self._epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Its steps are taken."""
        self.end_epoch(self._epoch)
        self._epoch += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Make the model small."""
        self.end(more["model"])
