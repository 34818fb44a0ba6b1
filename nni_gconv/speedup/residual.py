"""What is left of a residual block that adds nothing, as plain torch modules.

The block is exchanged for a ``Sequential`` of those of its modules that still act, and of the
activations of its forward.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

__all__ = ["ACTIVATIONS", "steps_of", "take_out"]

_KINDS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
}
#: Operator -> the step it is as a module; no module of a block can have a dot in its name.
ACTIVATIONS = {operator: f"nn.{kind.__name__}" for operator, kind in _KINDS.items()}
_STEPS: dict[str, type[nn.Module]] = dict(zip(ACTIVATIONS.values(), _KINDS.values(), strict=True))
_MARK = "remaining_steps"


def take_out(model: nn.Module, block: str, steps: Sequence[str]) -> None:
    """Leave of a block only some steps, in a plain ``Sequential`` in its place.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    block : str
        Dotted name.
    steps : sequence of str
        In the order they run: names of modules inside the block, which keep their names, or
        activations such as ``"nn.ReLU"``.

    Raises
    ------
    AttributeError
        The model has no such block, or the block no such module.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> net = resnet18()
    >>> take_out(net, "layer2.0", ["downsample", "nn.ReLU"])
    >>> [name for name, _ in net.layer2[0].named_children()], steps_of(net.layer2[0])
    (['downsample', 'step1'], ['downsample', 'nn.ReLU'])
    """
    old = model.get_submodule(block)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, step in enumerate(steps):
        if step in _STEPS:
            parts[f"step{number}"] = _STEPS[step]().train(old.training)
        else:
            parts[step] = old.get_submodule(step)
    made = nn.Sequential(parts)
    made.training = old.training  # of the block alone: parts may have been frozen
    setattr(made, _MARK, list(steps))
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, made)


def steps_of(module: nn.Module) -> list[str] | None:
    """Return what :func:`take_out` left of a block; None: the module is no such block."""
    return getattr(module, _MARK, None)
