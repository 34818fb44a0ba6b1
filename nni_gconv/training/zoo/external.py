"""Models from elsewhere: torchvision's, and a user's own constructor by its path."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.own_code import import_constructor, importable_here

from .hub import is_pretrained_folder, read_pretrained
from .weights import check_fit, load_weights

logger = logging.getLogger(__name__)

# Their side heads answer in training only, and cost weights; a user can ask for them.
WITH_SIDE_HEADS = ("googlenet", "inception_v3")
SIDE_HEADS = ("aux1.", "aux2.", "AuxLogits.")
RGB = 3


def create_torchvision(
    name: str,
    num_classes: int | None = None,
    weights: str | None = None,
    in_channels: int = RGB,
    **options: Any,
) -> nn.Module:
    """Build one of torchvision's models.

    Parameters
    ----------
    name : str
        Without the ``torchvision:``.
    num_classes : int, optional
        Where it differs from the number in published weights, the last layer keeps its initial
        weights. Default: that of `weights`, or torchvision's (1000).
    weights : str, optional
        Name of published weights (``"DEFAULT"``, ``"IMAGENET1K_V2"``), downloaded by torchvision,
        or a file for :func:`load_weights`.
    in_channels : int, default 3
        Another number replaces the first convolution; of published weights it gets, in every
        channel, the sum over red, green and blue divided by `in_channels`.
    **options
        Further arguments of torchvision's constructor.

    Raises
    ------
    ConfigError
        Unknown model, weights or option.
    CheckpointError
        A file of weights does not fit.
    """
    from torchvision import models

    names = models.list_models()
    if name not in names:
        raise ConfigError(unknown_name("torchvision model", name, names, "model.name"))
    if name in WITH_SIDE_HEADS:
        options = {"aux_logits": False, "init_weights": True, **options}
    published = None
    enum = models.get_model_weights(name)
    if weights is not None and weights in enum.__members__:
        published = enum[weights]
    elif weights is not None and not Path(weights).expanduser().is_file():
        raise ConfigError(
            unknown_name("weights", weights, enum.__members__, "model.weights")
            + f" and no file of that name for torchvision:{name}"
        )
    if num_classes is None and published is not None:
        num_classes = len(published.meta["categories"])
    if num_classes is not None:
        options["num_classes"] = num_classes
    if "weights_backbone" in _parameters(models.get_model_builder(name)):
        options = {"weights_backbone": None, **options}  # else torchvision downloads them
    try:
        model = models.get_model(name, weights=None, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.options: torchvision:{name}: {error}") from error
    if in_channels != RGB:
        _replace_stem(model, in_channels, name)
    if published is not None:
        _load_published(model, published.get_state_dict(check_hash=True, progress=False), weights)
    elif weights is not None:
        load_weights(model, weights)
    return model


def _replace_stem(model: nn.Module, in_channels: int, name: str) -> None:
    found = ((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d))
    path, module = next(found, ("", None))
    if module is None:
        raise ConfigError(f"model.options.in_channels: torchvision:{name} has no convolution")
    if module.in_channels != RGB or module.groups != 1:
        raise ConfigError(f"model.options.in_channels: {path} of torchvision:{name} is no stem")
    # The constructor keeps every setting of the old one, and its initial weights' scale.
    new = nn.Conv2d(
        in_channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        stride=module.stride,  # type: ignore[arg-type]
        padding=module.padding,  # type: ignore[arg-type]
        dilation=module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def _load_published(model: nn.Module, state: Mapping[str, Tensor], weights: str | None) -> None:
    """Load what fits; a stem and a head of another size are the two allowed differences."""
    own = model.state_dict()
    fitting = dict(state)
    if not any(key.startswith(SIDE_HEADS) for key in own):
        fitting = {k: v for k, v in fitting.items() if not k.startswith(SIDE_HEADS)}
    for key in [k for k, v in fitting.items() if k in own and own[k].shape != v.shape]:
        old, new = fitting[key], own[key]
        if old.ndim == 4 and old.shape[1] == RGB:
            fitting[key] = (old.sum(1, keepdim=True) / new.shape[1]).expand_as(new)
        elif old.shape[1:] == new.shape[1:]:
            logger.info("%s: %s has another number of classes and is not loaded", weights, key)
            fitting[key] = new
    check_fit(model, fitting, str(weights))
    model.load_state_dict(fitting, strict=False)


def import_factory(path: str) -> Callable[..., Any]:
    """Import ``package.module:factory``, a subclass of ``nn.Module`` or a function that makes one.

    Raises
    ------
    ConfigError
        See :func:`nni_gconv.own_code.import_constructor`.

    Examples
    --------
    >>> import_factory("torch.nn:Linear").__name__
    'Linear'
    """
    return import_constructor(path, nn.Module, "model.name")


def create_from_path(
    path: str, num_classes: int | None = None, weights: str | None = None, **options: Any
) -> nn.Module:
    """Build a model by a user's own constructor.

    Parameters
    ----------
    path : str
        ``package.module:factory``.
    num_classes : int, optional
        Passed where the constructor has a parameter of that name (or ``**kwargs``).
    weights : str, optional
        A file for :func:`load_weights`; or a folder that ``PyTorchModelHubMixin`` saved, or
        ``hf-hub:owner/name``, whose ``config.json`` has the constructor's arguments.
    **options
        Further arguments of the constructor.

    Raises
    ------
    ConfigError
        The path is wrong, the options do not fit, or what is built is no module.
    """
    factory = import_factory(path)
    parameters = _parameters(factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if weights is not None and is_pretrained_folder(weights):
        config, file = read_pretrained(weights)
        known = {k: v for k, v in config.items() if k in parameters or open_ended}
        options, weights = {**known, **options}, str(file)
        if "num_classes" in known:
            num_classes = None  # that of the weights
    if num_classes is not None and ("num_classes" in parameters or open_ended):
        options["num_classes"] = num_classes
    with importable_here():
        model = _call(factory, path, options)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model.name: {path!r} returns a {type(model).__name__}, not a torch.nn.Module"
        )
    return model if weights is None else load_weights(model, weights)


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _call(factory: Callable[..., Any], path: str, options: dict[str, Any]) -> Any:
    """Call a constructor; arguments that it does not take are a mistake in the recipe."""
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ConfigError(f"model.options: {path}: {error}") from error
    except ValueError:  # a builtin without a signature
        pass
    return factory(**options)
