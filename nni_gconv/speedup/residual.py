"""A model without the residual blocks that add nothing: what is left of them, its trace, its masks.

Such a block is exchanged for a ``Sequential`` of those of its modules that still act, and of the
activations of its forward.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nni_gconv.errors import SpeedupError, TraceError
from nni_gconv.graph import (
    ACTIVATIONS,
    Graph,
    Wiring,
    extend_masks,
    known_operands,
    map_channels,
    trace,
    vanishing,
)

_STEPS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name.removeprefix("nn.")) for name in ACTIVATIONS.values()
}
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


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model with the same weights, which a plan replaces and never changes.

    Biases and norms, to which a plan may add, are copied; they are small.
    """
    return copy_with(model, {id(p): p for p in model.parameters() if p.dim() > 1})


def copy_with(model: nn.Module, made: dict[int, Tensor]) -> nn.Module:
    """Copy a model; in place of a tensor whose id is in `made` the copy has the one given there.

    Raises
    ------
    SpeedupError
        The model holds what cannot be copied: a lock, an open file, a running thread.
    """
    try:
        return copy.deepcopy(model, {**_emptied(model), **made})
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpeedupError(
            f"the model cannot be copied: {_uncopyable(model, made)}: {first}; take it out of the "
            "model for the speedup"
        ) from error


def _emptied(model: nn.Module) -> dict[int, object]:
    """Copy the empty containers, ten of hooks a module; deepcopy takes long to ask each of them."""
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (dict, OrderedDict, set) and not value
    }


def _uncopyable(model: nn.Module, made: dict[int, Tensor]) -> str:
    """Name the attribute of a module that cannot be copied."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name != "_modules":
                try:
                    copy.deepcopy(value, dict(made))
                except Exception:
                    return f"{type(module).__name__}.{name}"
    return type(model).__name__


@dataclass(frozen=True)
class Thinned:
    """What is left of a traced and masked model.

    Attributes
    ----------
    graph : Graph
        Of what is left.
    masks : dict of str to bool Tensor
        Of the parameters that are left.
    blocks : dict of str to tuple of str
        Block that is exchanged -> what is left of it, see
        :func:`take_out`.
    gone : dict of str to bool Tensor
        Masks of the parameters that went with those blocks.
    """

    graph: Graph
    masks: dict[str, Tensor]
    blocks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    gone: dict[str, Tensor] = field(default_factory=dict)

    @functools.cached_property
    def wiring(self) -> Wiring:
        """What the masks of weights connect, which no attempt masks further."""
        return Wiring(self.graph, self.masks)

    @property
    def notes(self) -> tuple[str, ...]:
        """What went, one line each."""
        return tuple(
            f"{block}: its branch is masked, what is left is {', '.join(steps) or 'its input'}"
            for block, steps in self.blocks.items()
        )

    def copy_of(self, model: nn.Module) -> nn.Module:
        """Copy a model without those blocks; the copy shares its weights."""
        made = sharing_copy(model)
        self.thin(made)
        return made

    def thin(self, model: nn.Module) -> None:
        """Exchange those blocks of a model, in place."""
        for block, steps in self.blocks.items():
            take_out(model, block, steps)


def without_dead_blocks(
    model: nn.Module,
    dummy_input: Any,
    graph: Graph,
    masks: Mapping[str, Tensor],
    *,
    followers_too: bool,
) -> Thinned:
    """Find the residual blocks whose branch is masked, and trace a copy without them.

    Parameters
    ----------
    model, dummy_input
        The model that was traced; left as it was found.
    graph, masks
        Its trace, and bool masks by parameter name.
    followers_too : bool
        Norms behind masked filters are masked with them.

    Returns
    -------
    Thinned
        The model as it is where there is no such block, or where the rest does not run without.
    """
    whole = Thinned(graph, dict(masks))
    if all(bool(mask.any()) for mask in masks.values()):
        return whole  # saves following what is known through the network
    kept = dict(masks)
    if followers_too:
        kept, _ = extend_masks(graph, map_channels(graph), kept, Wiring(graph, kept))
    blocks = vanishing(graph, known_operands(graph, kept))
    if not blocks:
        return whole
    try:
        found = trace(Thinned(graph, {}, blocks).copy_of(model), dummy_input)
    except TraceError:  # a forward that asks more of its blocks than to be called
        return whole
    left = {
        found.aliases[alias][0]: mask
        for name, mask in masks.items()
        for alias in graph.aliases[name]
        if alias in found.aliases
    }
    gone = {
        name: mask
        for name, mask in kept.items()
        if not any(alias in found.aliases for alias in graph.aliases[name])
    }
    return Thinned(found, left, blocks, gone)
