"""What is asked of :func:`nni_gconv.shrink`, checked before any work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from nni_gconv import compat
from nni_gconv.checked import check_names
from nni_gconv.config_list import prunable_layers
from nni_gconv.errors import ConfigError, check_layers, unknown_name
from nni_gconv.profiling import device_of, parse_budget, to_device
from nni_gconv.pruning import Method, TrainedPruner, find_method

#: With images, and without.
BY_IMAGES, BY_WEIGHTS = "second_order", "magnitude"


@dataclass(frozen=True)
class Request:
    """What is asked, checked.

    Attributes
    ----------
    budget : dict of str to float
        Of macs, params, latency; empty where groups alone are asked.
    groups : int, mapping, path, "search" or None
        As it was given.
    name : str
        Of the method that chooses channels.
    method : Method
        What the name stands for.
    layers, kept : list of str
        Convolutions and linear layers that may be pruned, and those that shall keep all outputs.
    """

    budget: dict[str, float]
    groups: Any
    name: str
    method: Method
    layers: list[str]
    kept: list[str]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """NNI's config_list."""
        entry: dict[str, Any] = {"op_names": [*self.layers, *self.kept]}
        return [{**entry, "exclude_op_names": self.kept} if self.kept else entry]


def check_asked(budget: Mapping[str, Any], groups: Any, others: Iterable[str]) -> None:
    """Raise a ConfigError if nothing says how small; among the other arguments may be a typo."""
    if groups is not None or any(value is not None for value in budget.values()):
        return
    amounts = [*budget, "groups"]
    for name in others:
        if get_close_matches(name, amounts):
            raise ConfigError(unknown_name("argument", name, amounts, "shrink"))
    raise ConfigError(
        "shrink: how small? give macs=0.5, params=0.5 or latency=0.7 (fractions of the dense "
        "network), or groups=4"
    )


def read_request(
    model: nn.Module,
    budget: dict[str, Any],
    groups: Any,
    criterion: Any,
    keep: str | Sequence[str],
    has_images: bool,
) -> Request:
    """Check what is asked, without running the model.

    Raises
    ------
    ConfigError
        A name is unknown or a value is not allowed.
    """
    check_layers(model)
    if compat.is_wrapped(model):
        raise ConfigError("the model is wrapped by a pruner: call pruner.unwrap_model()")
    given = {measure: value for measure, value in budget.items() if value is not None}
    if isinstance(groups, bool) or (isinstance(groups, int) and groups < 1):
        raise ConfigError(f"groups: {groups!r} is not a number of groups from 1")
    if groups == "search" and not given:
        raise ConfigError('groups="search": needs a budget, such as macs=0.5')
    name, method = _method(criterion, has_images)
    layers = prunable_layers(model)
    kept = _kept(model, layers, keep)
    free = [layer for layer in layers if layer not in kept]
    if not free:
        why = "keep names every one of them" if layers else "the model has none"
        raise ConfigError(f"shrink: no convolution or linear layer to prune: {why}")
    return Request(parse_budget(given) if given else {}, groups, name, method, free, kept)


def _method(criterion: Any, has_images: bool) -> tuple[str, Method]:
    if criterion is None:
        criterion = BY_IMAGES if has_images else BY_WEIGHTS
    if isinstance(criterion, str):
        return criterion, find_method(criterion)
    if isinstance(criterion, type) and issubclass(criterion, TrainedPruner):
        return criterion.__name__, Method(criterion)
    raise ConfigError(
        f"criterion: {criterion!r} is neither the name of a method nor a pruner's class"
    )


def _kept(model: nn.Module, layers: Sequence[str], keep: str | Sequence[str]) -> list[str]:
    """Layers that the names and patterns of `keep` are, or hold."""
    patterns = [keep] if isinstance(keep, str) else list(keep)
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    kept: list[str] = []
    for pattern in patterns:
        hits = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not hits:
            raise ConfigError(unknown_name("module", pattern, names, "keep"))
        inside = [one for one in layers if any(one == h or one.startswith(f"{h}.") for h in hits)]
        if not inside:
            raise ConfigError(f"keep: {pattern!r} holds no convolution and no linear layer")
        kept += [one for one in inside if one not in kept]
    return kept


def check_options(request: Request, options: Mapping[str, Any]) -> None:
    """Raise an OptionError for an option that the method does not have."""
    method = request.method
    if not request.budget or request.groups == "search":
        method = find_method("gconv")
    check_names(options, [*method.option_names(), *method.constructor_arguments()], "shrink")


def copied(model: nn.Module) -> nn.Module:
    """Copy a model, which stays as it is.

    Raises
    ------
    ConfigError
        It cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(
            f"model: {type(model).__name__} cannot be copied ({reason}); shrink leaves the model "
            "given as it is"
        ) from error


def example_of(model: nn.Module, x: Any) -> Any:
    """Return example arguments on the model's device; a shape stands for an input of zeros."""
    if isinstance(x, tuple | torch.Size) and x and all(_is_size(size) for size in x):
        x = torch.zeros(*x)
    return to_device(x, device_of(model))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_trainer(trainer: Callable[[nn.Module], Any] | None) -> None:
    """Raise a ConfigError unless something can be called."""
    if trainer is not None and not callable(trainer):
        raise ConfigError(
            f"trainer: expected a function that trains the model it is given, got "
            f"{type(trainer).__name__}"
        )


def acts_in_training(kind: type[TrainedPruner], options: Mapping[str, Any]) -> bool:
    """Tell whether a method does something while a network trains: by its hooks, or a schedule."""
    hooks = ("prepare_training", "begin_training", "before_step", "after_step", "after_epoch")
    own = any(getattr(kind, name) is not getattr(TrainedPruner, name) for name in hooks)
    return own or options.get("schedule", "one-shot") != "one-shot"
