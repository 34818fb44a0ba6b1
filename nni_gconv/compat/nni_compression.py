"""Rough edges of NNI's compressors: wrappers, evaluators, layer types."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nni_gconv.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


#: Lists of torch's schedulers that have an item for each group of the optimizer.
_BY_GROUP = (
    "base_lrs", "max_lrs", "min_lrs", "lr_lambdas", "_last_lr", "base_momentums", "max_momentums",
)  # fmt: skip


def is_wrapped(model: nn.Module) -> bool:
    """Tell whether an NNI compressor still holds the model's modules in its wrappers."""
    return any(hasattr(module, "_nni_wrapper") for module in model.modules())


def evaluator_input(evaluator: Any) -> Any:
    """Return the example input that an NNI evaluator was given, if any.

    NNI keeps a keyword dict or a tuple; a Lightning evaluator keeps what it was given, elsewhere.
    """
    return getattr(evaluator, "dummy_input", getattr(evaluator, "_dummy_input", None))


def evaluator_optimizer(evaluator: Any) -> Optimizer | None:
    """Return the optimizer whose step an NNI evaluator patches; None while there is none.

    NNI makes it anew whenever it binds a model; a Lightning trainer only when it begins to fit.
    """
    made = getattr(evaluator, "_optimizers", None) or getattr(
        _trainer(evaluator), "optimizers", None
    )
    return made[0] if made else None


def let_lightning_stop(evaluator: Any) -> None:
    """Let NNI's Lightning evaluator train a number of steps.

    It sets ``trainer.fit_loop.max_steps``, which can only be read since Lightning 2.
    """
    if not hasattr(evaluator, "data_module"):
        return
    from pytorch_lightning.loops.fit_loop import _FitLoop

    known = _FitLoop.max_steps
    if isinstance(known, property) and known.fset is None:
        _FitLoop.max_steps = property(
            known.fget, lambda loop, steps: setattr(loop.epoch_loop, "max_steps", steps)
        )


def _trainer(evaluator: Any) -> Any:
    """Return the Lightning trainer that fits the evaluator's model just now, if there is one."""
    return getattr(getattr(evaluator, "model", None), "_trainer", None)


def _schedulers(evaluator: Any) -> list[Any]:
    fitting = getattr(_trainer(evaluator), "lr_scheduler_configs", None) or ()
    return [
        *(getattr(evaluator, "_lr_schedulers", None) or ()),
        *(config.scheduler for config in fitting),
    ]


def is_maskable(module: nn.Module, target: str) -> bool:
    """Tell whether a wrapper masks a tensor of a module, channel by channel.

    Those are ``weight`` and ``bias`` where there are both, and buffers. A slope without a shift
    (PReLU, a bare scale parameter) keeps silence silent by itself.
    """
    trained = hasattr(module, "weight") and hasattr(module, "bias")
    return target in module._buffers or (trained and target in ("weight", "bias"))


def register_pruning_types(model: nn.Module, names: list[str]) -> None:
    """Let NNI wrap layers whose class it does not list, such as a user's subclass of Conv2d.

    NNI knows layers by the name of their class; an unknown name is an assertion error. The entry
    is the one that all of its convolutions have.
    """
    from nni.compression.base.setting import PruningSetting

    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        kind = type(modules[name]).__name__
        if kind not in PruningSetting.registry:
            PruningSetting.register(kind, PruningSetting.default_setting)


def learn_optimizer(evaluator: Any, model: nn.Module) -> None:
    """Let an evaluator note by name what its optimizer trains, before wrapping replaces it.

    NNI does so when the first pruner is made; wrapping and unwrapping replaces the parameters, and
    a pruner that is made afterwards would train nothing.
    """
    if not evaluator._initialization_complete:
        evaluator._init_optimizer_helpers(model)


def split_parameter_groups(evaluator: Any, parameters: Iterable[Tensor], **changes: Any) -> None:
    """Give some parameters of an evaluator's optimizer groups of their own, with other settings.

    Every group that holds some of them is split. torch's schedulers keep one number or function
    for each group; they get the same for the new group.
    """
    optimizer = evaluator_optimizer(evaluator)
    if optimizer is None:
        return
    wanted = {id(p) for p in parameters}
    for index, group in enumerate(list(optimizer.param_groups)):
        mine = [p for p in group["params"] if id(p) in wanted]
        if len(mine) == len(group["params"]):
            group.update(changes)
        elif mine:
            group["params"] = [p for p in group["params"] if id(p) not in wanted]
            optimizer.add_param_group({**group, "params": mine, **changes})
            for scheduler in _schedulers(evaluator):
                for name in _BY_GROUP:
                    numbers = getattr(scheduler, name, None)
                    if isinstance(numbers, list):
                        setattr(scheduler, name, [*numbers, numbers[index]])


def take_over_weights(wrappers: Mapping[str, Any]) -> None:
    """Give unwrapped wrappers the weights that their modules have now.

    A wrapper keeps the parameters it was made with and puts them back when it wraps again, so
    whatever was trained in between would be lost.
    """
    import torch

    with torch.no_grad():
        for wrapper in wrappers.values():
            for name, space in wrapper.pruning_target_spaces.items():
                if isinstance(space.target, torch.nn.Parameter):
                    space.target.copy_(getattr(wrapper.module, name))
                elif wrapper._buffers.get(name) is not None:
                    wrapper._buffers[name] = wrapper.module._buffers[name]


def explain_fusion() -> None:
    """Let NNI's quantisers say what to do where they cannot fuse what a pruner of ours holds.

    Norms are wrapped because they are masked with their filters, and NNI fuses no wrapped norm into
    a convolution.
    """
    from nni.compression.base import compressor

    register = compressor.register_wrappers
    if hasattr(register, "__wrapped__"):
        return

    @functools.wraps(register)
    def registering(*args: Any, **kwargs: Any) -> Any:
        try:
            return register(*args, **kwargs)
        except ValueError as error:
            if "because of module fusion" not in str(error):
                raise
            name = str(error).split(" is wrapped")[0].rpartition(" ")[2]
            raise ConfigError(
                f"fuse_names: {name} is masked by a pruner and cannot be fused: speed up first, "
                "then quantise: pruner.compress(), pruner.unwrap_model(), ModelSpeedup(...), and "
                "a quantiser of the small model"
            ) from error

    compressor.register_wrappers = registering
