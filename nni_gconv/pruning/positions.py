"""Arguments by position: a pruner takes those of NNI so, and its options by name alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from nni.compression.utils import Evaluator

from nni_gconv.errors import ConfigError, OptionError

#: What every pruner takes by position, in NNI's order, in words.
_NNI_ARGUMENTS = {
    "model": "a torch.nn.Module",
    "config_list": "a list of entries",
    "evaluator": "an evaluator of NNI",
    "existed_wrappers": "the wrappers of an earlier pruner",
}


def check_positions(kind: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Say of an option that was given by position that it has a name."""
    given = {**dict(zip(_NNI_ARGUMENTS, args, strict=False)), **kwargs}
    for name, expected in (("evaluator", Evaluator), ("existed_wrappers", Mapping)):
        value = given.get(name)
        if value is not None and not isinstance(value, expected):
            raise ConfigError(
                f"{kind.__name__}: {name}: expected {_NNI_ARGUMENTS[name]}, got "
                f"{type(value).__name__}; options have names: dummy_input=, budget=, ..."
            )
    made = next(vars(one)["__init__"] for one in kind.__mro__ if "__init__" in vars(one))
    taken = list(inspect.signature(made).parameters.values())
    places = [one for one in taken if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    free = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in taken)
    if len(args) >= len(places) and not free:
        raise OptionError(
            f"{kind.__name__}: {len(args)} arguments by position, there are {len(places) - 1} "
            f"({', '.join(one.name for one in places[1:])}); options have names: dummy_input=, ..."
        )
