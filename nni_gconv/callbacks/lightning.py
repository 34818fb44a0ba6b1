"""Pruning in Lightning: ``Trainer(callbacks=[PruningCallback("fpgm", {"macs": 0.5})])``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nni_gconv.callbacks.session import PruningSession
from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.callbacks import Callback
else:
    try:  # either name of the library; a trainer takes its own callbacks only
        from pytorch_lightning.callbacks import Callback
    except ImportError:
        try:
            from lightning.pytorch.callbacks import Callback
        except ImportError as error:
            raise ConfigError(
                "PruningCallback needs Lightning: pip install 'nni-gconv[lightning]'"
            ) from error


class PruningCallback(PruningSession, Callback):
    """Prune what a Lightning trainer fits; the module is small when ``fit`` returns.

    Parameters as for :class:`~nni_gconv.callbacks.session.PruningSession`; ``x`` is by default the
    module's ``example_input_array``.

    Examples
    --------
    ::

        trainer = Trainer(callbacks=[PruningCallback("slimming", {"macs": 0.5})])
        trainer.fit(module, loader)
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the module."""
        if trainer.global_step:
            raise ConfigError("PruningCallback: cannot go on from a checkpoint")
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise ConfigError("PruningCallback: give the trainer max_epochs=")
        if len(trainer.optimizers) != 1:
            raise ConfigError("PruningCallback: takes a module with one optimizer")
        if self.x is None:
            self.x = getattr(pl_module, "example_input_array", None)
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        self.begin(pl_module, trainer.optimizers[0], trainer.max_epochs, steps)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch begins."""
        self.begin_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its steps are taken."""
        self.end_epoch(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the module small."""
        self.end(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self.stop(exception)

    def state_dict(self) -> dict[str, Any]:
        """Nothing of it belongs into a checkpoint."""
        return {}
