"""What all families share: widths, initial weights and the checks of depths."""

from __future__ import annotations

from torch import nn

from nni_gconv.errors import ConfigError


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded, at least 1.

    Parameters
    ----------
    channels : int
        Channels of the published network.
    width : float
        Multiplier, greater than 0; 1.0 is the published network.

    Examples
    --------
    >>> scaled(16, 0.5), scaled(16, 0.01)
    (8, 1)
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not width > 0:
        raise ConfigError(f"model.options.width: {width!r} is not a number greater than 0")
    return max(1, round(channels * width))


def check_depth(family: str, depth: int, step: int, offset: int) -> int:
    """Return n of ``depth = step * n + offset``, or say which depths there are.

    Examples
    --------
    >>> check_depth("resnet", 56, step=6, offset=2)
    9
    """
    if not isinstance(depth, int) or depth < step + offset or (depth - offset) % step:
        first = [step * n + offset for n in (1, 2, 3)]
        raise ConfigError(
            f"model.options.depth: {family} has depths {step}n+{offset} "
            f"({', '.join(map(str, first))}, ...), not {depth!r}"
        )
    return (depth - offset) // step


def init_weights(model: nn.Module, bn_gamma: float = 1.0) -> None:
    """Draw convolutions from He's normal distribution (fan out); norms get `bn_gamma` and 0.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. Linear layers keep torch's own initial weights, biases become 0.
    bn_gamma : float, default 1.0
        Initial scale of every batch norm; network slimming starts from 0.5.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, bn_gamma)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
