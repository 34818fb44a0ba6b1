"""An optimizer's memory follows the parameters it belongs to; one that was left behind says so.

With its memory a step of the small model is a step of the masked one, up to the order of sums. For
optimizers that move every weight by itself (SGD, Adam, AdamW) that is so wherever masked weights
get no gradient. :class:`~nni_gconv.training.proxsgd.ProxSGD` moves whole filters: its step is that
of a masked model in which the weights that read masked channels are zero as well, with what is
remembered of them. They act on nothing but the norm and the mean over their filter; that the
filter was larger once stays in the state (``filter_size``). Other optimizers that look at a whole
tensor (LARS, Adafactor) take other steps, since the tensor is another one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nni_gconv.errors import SpeedupError
from nni_gconv.speedup.cut import Replaced

#: What marks a parameter that its model has no longer.
_LEFT_BEHIND = "_left_behind"


def leave_behind(before: Sequence[Tensor], model: nn.Module) -> None:
    """Let an optimizer that still holds what the model has no longer refuse its next step.

    Torch passes over a parameter without a gradient in silence: the small model would seem to
    train, and never change.

    Parameters
    ----------
    before : sequence of Tensor
        The parameters that the model had; those it still has are left alone.
    model : nn.Module
        The small model.
    """
    present = {id(p) for p in model.parameters()}
    for parameter in before:
        if id(parameter) not in present:
            parameter.grad = None
            setattr(parameter, _LEFT_BEHIND, True)
    _watch_steps()


@functools.cache
def _watch_steps() -> None:
    register_optimizer_step_pre_hook(_refuse_left_behind)


def _refuse_left_behind(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    # With a gradient it is in use: another model has it as well.
    stale = sum(_LEFT_BEHIND in p.__dict__ and p.grad is None for p in held)
    if stale:
        raise SpeedupError(
            f"{stale} of the optimizer's {len(held)} parameters are of the model before it was "
            "cut, and move nothing: optimizer = speedup.rebind_optimizer(optimizer), or make it "
            "anew from model.parameters()"
        )


def rebind(
    optimizer: torch.optim.Optimizer,
    replaced: Sequence[Replaced],
    model: nn.Module,
    gone: Sequence[Tensor] = (),
) -> None:
    """Exchange an optimizer's parameters and cut what it remembers of them.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Changed in place; nothing is changed when it does not belong to the model.
    replaced : sequence of Replaced
        What took whose place.
    model : nn.Module
        The small model.
    gone : sequence of Tensor
        What the model has no longer; it is forgotten.

    Raises
    ------
    SpeedupError
        A parameter of the optimizer is neither an old nor a present one of the model.
    """
    change = {id(r.old): r for r in replaced}
    present = {id(p) for p in model.parameters()}
    left = {id(p) for p in gone} - present - set(change)
    for number, group in enumerate(optimizer.param_groups):
        for old in group["params"]:
            if id(old) not in present and id(old) not in change and id(old) not in left:
                raise SpeedupError(
                    f"the optimizer's group {number} holds a parameter of shape {tuple(old.shape)} "
                    "that the model did not have: make it from the unwrapped model's parameters"
                )
    for group in optimizer.param_groups:
        group["params"] = [
            change[id(p)].new if id(p) in change else p
            for p in group["params"]
            if id(p) not in left
        ]
    for old in [p for p in optimizer.state if id(p) in left]:
        del optimizer.state[old]
    for old in [p for p in optimizer.state if id(p) in change]:
        made = change[id(old)]
        state = optimizer.state.pop(old)
        optimizer.state[made.new] = {key: _cut(value, made) for key, value in state.items()}


def _cut(value: Any, made: Replaced) -> Any:
    """Cut what has the parameter's shape, or that of its filters; counters and the like stay."""
    if not isinstance(value, Tensor):
        return value
    if value.shape == made.old.shape:
        return made.cut(value).clone()
    per_filter = (made.old.shape[0], *[1] * (made.old.dim() - 1))
    if made.old.dim() > 1 and tuple(value.shape) == per_filter:
        rows = made.edit.keep.get(0) if made.edit is not None else None
        return value if rows is None else value[torch.tensor(rows, device=value.device)].clone()
    return value
