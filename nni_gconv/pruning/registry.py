"""Pruning methods by the name a recipe calls them: ours, NNI's and a user's own.

``method:`` of a recipe is a name of :func:`method_names`, one that :func:`register_pruner` gave,
or ``package.module:Class``. What a method can be told is checked when the recipe is loaded, by the
``Options`` of its class.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nni_gconv.checked import check_names, checked
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.own_code import import_class
from nni_gconv.pruning.options import NOT_IN_RECIPES

if TYPE_CHECKING:
    from nni.compression.utils import Evaluator
    from torch import nn

    from nni_gconv.pruning.pruner import TrainedPruner

_NNI = "nni:"
_CRITERIA = "nni_gconv.pruning.criteria."
#: Criteria that rank channels by name, and never train by themselves -> module and class.
CRITERIA = {
    "activation": f"{_CRITERIA}activation:ActivationPruner",
    "fisher": f"{_CRITERIA}fisher:FisherPruner",
    "hessian": f"{_CRITERIA}hessian:HessianPruner",
    "lamp": f"{_CRITERIA}lamp:LampPruner",
    "magnitude": f"{_CRITERIA}magnitude:MagnitudePruner",
    "random": f"{_CRITERIA}random:RandomPruner",
    "second_order": f"{_CRITERIA}second_order:SecondOrderPruner",
    "taylor": f"{_CRITERIA}taylor:TaylorPruner",
}
#: Name in a recipe -> module and class.
METHODS = {
    "fpgm": "nni_gconv.pruning.methods.fpgm:FPGMPruner",
    "gconv": "nni_gconv.pruning.methods.gconv.pruner:GroupConvPruner",
    "gsparsity": "nni_gconv.pruning.methods.gsparsity.pruner:GSparsityPruner",
    "shuffle": "nni_gconv.pruning.methods.shuffle.pruner:ShufflePruner",
    "slimming": "nni_gconv.pruning.methods.slimming.pruner:SlimmingPruner",
    **CRITERIA,
}
_registered: dict[str, type[TrainedPruner]] = {}

P = TypeVar("P", bound="type[TrainedPruner]")


def register_pruner(name: str) -> Callable[[P], P]:
    """Let recipes and :func:`nni_gconv.shrink` call a pruner's class by a name.

    For this process; a recipe that ``nni-gconv run`` is given names the class itself,
    ``method: package.module:Class``.

    Parameters
    ----------
    name : str
        Letters, digits, ``_`` and ``-``; not one of ours.

    Returns
    -------
    callable
        Decorator that returns the class as it is.

    Raises
    ------
    ConfigError
        A name that is taken or not allowed, or a class that is no pruner.

    Examples
    --------
    >>> from nni_gconv import register_pruner
    >>> from nni_gconv.pruning import ChannelPruner
    >>> @register_pruner("largest_weight")
    ... class LargestWeightPruner(ChannelPruner):
    ...     def rank(self, filters):
    ...         return self.combine([f.abs().amax(1) for f in filters])
    >>> find_method("largest_weight").kind.__name__
    'LargestWeightPruner'
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"register_pruner: {name!r} is not allowed (letters, digits, _ and -)")

    def register(kind: P) -> P:
        _check_kind(kind, name)
        before = _registered.get(name)
        same = before is not None and _path(before) == _path(kind)  # its module was run again
        if name in METHODS or (before is not None and not same):
            taken = METHODS.get(name) or _path(_registered[name])
            raise ConfigError(f"register_pruner: {name!r} is the name of {taken} already")
        _registered[name] = kind
        return kind

    return register


def method_names() -> list[str]:
    """List the names of all methods, NNI's and registered ones too."""
    from nni_gconv.pruning.methods.nni import NNI_METHODS

    return [*METHODS, *_registered, *(f"{_NNI}{name}" for name in NNI_METHODS)]


@dataclass(frozen=True)
class Method:
    """What a name in a recipe stands for.

    Attributes
    ----------
    kind : type
        Class of the pruner.
    nni : str or None
        NNI's class whose metric it takes.
    """

    kind: type[TrainedPruner]
    nni: str | None = None

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise a ConfigError for the first of a recipe's options that is wrong."""
        own = self._own(options)
        values = {name: value for name, value in options.items() if name not in own}
        taken = self.constructor_arguments()
        names = [*self.option_names(), *taken]
        check_names(options, names, "prune.options")
        fixed: dict[str, Any] = {} if self.nni is None else {"method": self.nni, "options": own}
        values = {name: value for name, value in values.items() if name not in taken}
        try:
            checked(self.kind.Options, {**values, **fixed})
        except ConfigError as error:
            raise ConfigError(f"prune.options.{error}") from error
        if self.nni is not None:
            checked(_nni_options(self.nni), own, "prune.options")

    def option_names(self) -> list[str]:
        """Name what may stand under ``options:`` in a recipe."""
        left = NOT_IN_RECIPES | ({"method", "options"} if self.nni else frozenset())
        names = [name for name in self.kind.Options.model_fields if name not in left]
        return names + ([] if self.nni is None else list(_nni_options(self.nni).model_fields))

    def constructor_arguments(self) -> list[str]:
        """Name what a user's own constructor takes beside its options."""
        from nni_gconv.pruning.pruner import own_arguments

        return [name for name in own_arguments(self.kind) if name != "further_layers"]

    def make(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None,
        **options: Any,
    ) -> TrainedPruner:
        """Make a pruner; arguments as in NNI, options as in a recipe."""
        own = self._own(options)
        ours = {name: value for name, value in options.items() if name not in own}
        if self.nni is not None:
            ours.update(method=self.nni, options=own)
        return self.kind(model, config_list, evaluator, **ours)

    def _own(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.nni is None:
            return {}
        return {k: v for k, v in options.items() if k in _nni_options(self.nni).model_fields}


def _nni_options(name: str) -> Any:
    from nni_gconv.pruning.methods.nni import NNI_METHODS

    return NNI_METHODS[name]


def find_method(name: str) -> Method:
    """Find what a method's name stands for.

    Raises
    ------
    ConfigError
        An unknown name, or a path that leads to no pruner.
    """
    if name in METHODS:
        return Method(_load(METHODS[name]))
    if name in _registered:
        return Method(_registered[name])
    if name in method_names():
        from nni_gconv.pruning.methods.nni import NNIMethodPruner

        return Method(NNIMethodPruner, name.removeprefix(_NNI))
    if ":" in name and not name.startswith(_NNI):
        from nni_gconv.pruning.pruner import TrainedPruner

        return Method(import_class(name, TrainedPruner, "prune.method"))
    if name.startswith(_NNI):
        known = [one.removeprefix(_NNI) for one in method_names() if one.startswith(_NNI)]
        raise ConfigError(unknown_name("NNI pruner", name[len(_NNI) :], known, "prune.method"))
    said = unknown_name("method", name, method_names(), "prune.method")
    raise ConfigError(f"{said}; or package.module:Class for your own")


def _load(path: str) -> type[TrainedPruner]:
    module, _, name = path.partition(":")
    found: type[TrainedPruner] = getattr(importlib.import_module(module), name)
    return found


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _check_kind(kind: Any, name: str) -> None:
    from nni_gconv.pruning.pruner import TrainedPruner

    if not (isinstance(kind, type) and issubclass(kind, TrainedPruner)):
        raise ConfigError(
            f"prune.method: {name!r} is no pruner: derive it from nni_gconv.pruning.ChannelPruner"
        )
