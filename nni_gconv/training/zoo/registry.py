"""The names under which models can be built, timm style.

A family file decorates its constructors with :func:`register_model`; :func:`lookup` finds them by
name. Nothing here knows a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, overload

from torch import nn

from nni_gconv.errors import ConfigError, nearest, unknown_name

Factory = Callable[..., nn.Module]
AnyFactory = TypeVar("AnyFactory", bound=Factory)

CIFAR_INPUT = (3, 32, 32)


@dataclass(frozen=True)
class ModelEntry:
    """A registered model: its constructor and the input (C, H, W) it is usually given."""

    factory: Factory
    input_size: tuple[int, int, int]

    def options(self) -> list[str]:
        """Return the names of the keyword arguments that a user may give."""
        preset = self.factory.keywords if isinstance(self.factory, partial) else {}
        return [p for p in inspect.signature(self.factory).parameters if p not in preset]


_MODELS: dict[str, ModelEntry] = {}


@overload
def register_model(
    name: AnyFactory, *, input_size: tuple[int, int, int] = CIFAR_INPUT
) -> AnyFactory: ...


@overload
def register_model(
    name: str | None = None, *, input_size: tuple[int, int, int] = CIFAR_INPUT
) -> Callable[[AnyFactory], AnyFactory]: ...


def register_model(name: Any = None, *, input_size: tuple[int, int, int] = CIFAR_INPUT) -> Any:
    """Enter a constructor in the list of models, as a decorator with or without arguments.

    Parameters
    ----------
    name : str, optional
        Name to build it by; the function's own name where absent.
    input_size : tuple of int, default (3, 32, 32)
        Channels, height and width of the input the model is usually given.

    Returns
    -------
    callable
        The constructor, unchanged. It must take its arguments by keyword, `num_classes` and
        `in_channels` among them.

    Raises
    ------
    ConfigError
        The name is taken, holds a colon, or the object has no name of its own.

    Examples
    --------
    >>> from torch import nn
    >>> @register_model(input_size=(1, 28, 28))
    ... def two_layers(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    ...     conv = nn.Conv2d(in_channels, 8, 3, stride=2)
    ...     return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 169, num_classes))
    >>> "two_layers" in list_models()
    True
    """
    if callable(name):
        return register_model(input_size=input_size)(name)

    def decorate(factory: AnyFactory) -> AnyFactory:
        key = name or getattr(factory, "__name__", None)
        if not key:
            raise ConfigError(f"register_model: {factory!r} has no name; give one")
        if ":" in key:
            raise ConfigError(f"register_model: {key!r} holds a colon, which marks a module path")
        if key in _MODELS:
            raise ConfigError(f"register_model: the name {key!r} is taken")
        _MODELS[key] = ModelEntry(factory, input_size)
        return factory

    return decorate


def list_models() -> list[str]:
    """Return the names of all registered models, sorted.

    Examples
    --------
    >>> "resnet56" in list_models()
    True
    """
    return sorted(_MODELS)


def lookup(name: str) -> ModelEntry:
    """Return the entry of a registered model, or say which name was meant.

    Raises
    ------
    ConfigError
        No model has that name.
    """
    if name in _MODELS:
        return _MODELS[name]
    import torchvision

    # resnet50 is 0.9 alike to resnet20 and yet means something else.
    if name in torchvision.models.list_models():
        small = f"cifar_{name}"
        more = f" or {small!r}, of small images" if small in _MODELS else ""
        raise ConfigError(
            f"model.name: {name!r} is not a CIFAR model; did you mean 'torchvision:{name}'{more}?"
        )
    if ":" not in name and "." in name:
        raise ConfigError(
            f"model.name: unknown model {name!r}; a constructor of your own is written "
            "'package.module:factory'"
        )
    close = nearest(name, _MODELS)
    message = unknown_name("model", name, _MODELS, "model.name")
    more = "" if close else "; also torchvision:NAME, timm:NAME and package.module:factory"
    raise ConfigError(message + more)
