"""Every error a user can cause, each with one clear line.

All errors derive from :class:`NniGconvError`; the command line prints the message on one line and
exits with code 2, so a message says what is wrong, where, what is allowed, and the nearest name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Names that a message lists: all methods, and some that a user has registered.
_SHOWN = 40


class NniGconvError(Exception):
    """Base of all errors that a user can cause or fix."""


class ConfigError(NniGconvError, ValueError):
    """A recipe, a config_list, an experiment file or an argument is wrong."""


class OptionError(ConfigError, TypeError):
    """An option does not exist, as a TypeError says of an argument."""


class UnseenError(ConfigError):
    """A method that looks at images cannot see what some layers are read by."""


class TraceError(NniGconvError):
    """The model could not be traced; the message names the line of its forward."""


class SpeedupError(NniGconvError):
    """The small model would not equal the masked one; the message names the first layer."""


class CheckpointError(NniGconvError):
    """A file of weights, masks or state is missing, damaged or belongs to something else."""


class BudgetError(NniGconvError, ValueError):
    """The budget cannot be reached; the message says what can."""


class DataError(NniGconvError):
    """A data set is missing or damaged; the message says what was expected where."""


def check_model(model: object) -> None:
    """Raise a ConfigError if something is no ``torch.nn.Module``; torch is not needed for that.

    Examples
    --------
    >>> check_model("resnet18")
    Traceback (most recent call last):
    ...
    nni_gconv.errors.ConfigError: model: expected a torch.nn.Module, got str
    """
    if isinstance(model, type):
        name = model.__name__
        raise ConfigError(f"model: expected a torch.nn.Module, got the class {name}: give {name}()")
    if not callable(getattr(model, "named_modules", None)):
        raise ConfigError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def check_layers(model: object) -> None:
    """Raise a ConfigError if something is no module, or one whose layers a compiler has taken."""
    kinds = {base.__name__ for base in type(model).__mro__}
    exported = "GraphModule" in kinds and "eval" in vars(model)  # which torch.export overrides
    if exported or "ExportedProgram" in kinds:
        raise ConfigError(
            "model: comes from torch.export, which leaves no layers to prune; prune the module it "
            "was exported from, then export that"
        )
    if "ScriptModule" in kinds:
        raise ConfigError(
            "model: is a ScriptModule, whose layers cannot be changed; prune the module it was "
            "made from, then script that"
        )
    check_model(model)


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return the allowed names closest to `name`, best first, at most `count`."""
    return difflib.get_close_matches(name, list(allowed), n=count, cutoff=0.5)


def unknown_name(what: str, name: object, allowed: Iterable[str], where: str = "") -> str:
    """Write the one line that tells a user about a name that does not exist.

    Parameters
    ----------
    what : str
        Kind of thing, for example ``"optimizer"``.
    name : object
        The name the user gave.
    allowed : iterable of str
        All names that would have been right.
    where : str, optional
        Place in the user's file, for example ``"train.optimizer.name"``.

    Returns
    -------
    str
        ``"train.optimizer.name: unknown optimizer 'SDG'; did you mean 'SGD'? (allowed: ...)"``.

    Examples
    --------
    >>> unknown_name("optimizer", "SDG", ["SGD", "AdamW"], "train.optimizer.name")
    "train.optimizer.name: unknown optimizer 'SDG'; did you mean 'SGD'? (allowed: AdamW, SGD)"
    """
    options = sorted({str(a) for a in allowed})
    close = nearest(str(name), options, count=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(options[:_SHOWN]) + (", ..." if len(options) > _SHOWN else "")
    prefix = f"{where}: " if where else ""
    return f"{prefix}unknown {what} {name!r}{hint} (allowed: {shown})"
