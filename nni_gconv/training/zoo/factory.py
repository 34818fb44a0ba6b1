"""Building a model by its name: from this zoo, from torchvision, or from a user's module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from nni_gconv.errors import ConfigError, unknown_name

from .external import create_from_path, create_torchvision, import_factory
from .grouped import with_groups
from .hub import TIMM, create_timm, timm_input_size
from .registry import lookup
from .weights import load_weights

TORCHVISION = "torchvision:"
IMAGENET_INPUT = (3, 224, 224)
INCEPTION_INPUT = (3, 299, 299)


class WeightsFile(BaseModel):
    """``model.weights`` written out: a file, and what becomes of its last layer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(
        description="A .safetensors or torch state dict file, or a name of torchvision's weights; "
        "weights: FILE is the short form"
    )
    head: Literal["keep", "new"] = Field(
        "keep", description="new: the last layer begins anew, for other classes than the file's"
    )


class ModelSettings(BaseModel):
    """The recipe's ``model``: which network, of what size, with which weights.

    Examples
    --------
    >>> ModelSettings(name="resnet8", options={"width": 0.5}).build().linear
    Linear(in_features=32, out_features=10, bias=True)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        description="A name of list_models(), torchvision:NAME, timm:NAME, or "
        "package.module:factory"
    )
    num_classes: int | None = Field(
        default=None, ge=1, description="Length of the output; null: the constructor's own default"
    )
    weights: str | WeightsFile | None = Field(
        default=None,
        description="A .safetensors or torch state dict file; a name of torchvision's weights; "
        "pretrained for timm's; for a class of one's own a folder that PyTorchModelHubMixin saved, "
        "or hf-hub:owner/name; {file: ..., head: new} for a network of other classes",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of the constructor, such as width; for any model "
        "group_config and group_form, which split its convolutions in groups",
    )

    @field_validator("options")
    @classmethod
    def _no_settings(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in ("name", "weights"):
            if name in options:
                raise ValueError(f"{name!r} is set beside options, as model.{name}")
        return options

    def build(self, **defaults: Any) -> nn.Module:
        """Build the model; `defaults` are arguments that `options` and the settings override."""
        given = {} if self.num_classes is None else {"num_classes": self.num_classes}
        arguments = {**defaults, **self.options, **given}
        weights = self.weights
        if isinstance(weights, WeightsFile):
            return create_model(self.name, weights=weights.file, head=weights.head, **arguments)
        return create_model(self.name, weights=weights, **arguments)

    @property
    def new_head(self) -> bool:
        """Whether the last layer begins anew."""
        return isinstance(self.weights, WeightsFile) and self.weights.head == "new"

    @property
    def weights_file(self) -> str | None:
        """The file, or the name, of either form of `weights`."""
        return self.weights.file if isinstance(self.weights, WeightsFile) else self.weights


def create_model(
    name: str,
    num_classes: int | None = None,
    weights: str | None = None,
    *,
    head: Literal["keep", "new"] = "keep",
    group_config: str | Path | Mapping[str, int] | None = None,
    group_form: str = "grouped",
    **options: Any,
) -> nn.Module:
    """Build a model by its name.

    Parameters
    ----------
    name : str
        One of :func:`list_models`; ``torchvision:NAME``; ``timm:NAME``; or
        ``package.module:factory``, which is
        imported (the working directory counts) and called.
    num_classes : int, optional
        Length of the output. Default: 10 for this zoo's models, the number of the published
        weights or 1000 for torchvision's, and whatever a user's constructor does. It is passed to
        the latter only if it takes it.
    weights : str, optional
        A ``.safetensors`` file or a torch state dict, see :func:`load_weights`; for torchvision
        also the name of published weights, such as ``"DEFAULT"``.
    head : {"keep", "new"}, default "keep"
        ``"new"``: the last layer begins anew, see :func:`load_weights`.
    group_config : path or mapping of str to int, optional
        Group counts of convolutions, which are split once the model is built and its weights are
        loaded; see :func:`nni_gconv.training.zoo.grouped.with_groups`.
    group_form : {"grouped", "separable"}, default "grouped"
        Whether they become group convolutions, or spatial group convolutions with a 1x1
        convolution behind.
    **options
        Further arguments of the constructor: ``in_channels`` and ``width`` for this zoo's models.

    Returns
    -------
    torch.nn.Module
        In training mode, on the CPU.

    Raises
    ------
    ConfigError
        Unknown name (the nearest is named), option or value.
    CheckpointError
        The weights are missing or do not fit.

    Examples
    --------
    >>> model = create_model("resnet20", num_classes=100)
    >>> sum(p.numel() for p in model.parameters())
    275572
    """
    if head == "new" and weights is not None and Path(weights).expanduser().is_file():
        model = load_weights(_create_dense(name, num_classes, None, **options), weights, head=head)
    else:  # torchvision's published weights leave a head of another size as it is
        model = _create_dense(name, num_classes, weights, **options)
    return model if group_config is None else with_groups(model, group_config, group_form)


def _create_dense(
    name: str, num_classes: int | None, weights: str | None, **options: Any
) -> nn.Module:
    if name.startswith(TORCHVISION):
        return create_torchvision(name[len(TORCHVISION) :], num_classes, weights, **options)
    if name.startswith(TIMM):
        return create_timm(name[len(TIMM) :], num_classes, weights, **options)
    if ":" in name:
        return create_from_path(name, num_classes, weights, **options)
    entry = lookup(name)
    allowed = entry.options()
    for option in options:
        if option not in allowed:
            raise ConfigError(unknown_name(f"option of {name}", option, allowed, "model.options"))
    if num_classes is not None:
        options["num_classes"] = num_classes
    model = entry.factory(**options)
    return model if weights is None else load_weights(model, weights)


def input_size(name: str) -> tuple[int, int, int]:
    """Return the channels, height and width of the input a model is usually given.

    Parameters
    ----------
    name : str
        As for :func:`create_model`. A user's constructor tells it by an attribute ``input_size``.

    Raises
    ------
    ConfigError
        Unknown name, or a user's constructor without that attribute.

    Examples
    --------
    >>> input_size("resnet56"), input_size("torchvision:inception_v3")
    ((3, 32, 32), (3, 299, 299))
    """
    if name.startswith(TORCHVISION):
        from torchvision import models

        bare = name[len(TORCHVISION) :]
        names = models.list_models()
        if bare not in names:
            raise ConfigError(unknown_name("torchvision model", bare, names, "model.name"))
        return INCEPTION_INPUT if "inception" in bare else IMAGENET_INPUT
    if name.startswith(TIMM):
        return timm_input_size(name[len(TIMM) :])
    if ":" in name:
        size = getattr(import_factory(name), "input_size", None)
        if not isinstance(size, tuple | list) or len(size) != 3:
            raise ConfigError(
                f"model.name: {name!r} does not say its input size; set {name.split(':')[1]}."
                "input_size = (channels, height, width)"
            )
        channels, height, width = (int(n) for n in size)
        return channels, height, width
    return lookup(name).input_size
