"""What each layer of a small and of its dense network comes to, as plain rows for a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nni_gconv.groupconv import gathers_of, groups_of
from nni_gconv.profiling import Profile, profile

#: Attributes that hold a layer's inputs and outputs, by type.
_SIDES: tuple[tuple[tuple[type, ...], str, str], ...] = (
    ((nn.modules.conv._ConvNd,), "in_channels", "out_channels"),
    ((nn.Linear,), "in_features", "out_features"),
)


def layer_sizes(
    model: nn.Module, example: Any, profiled: Profile | None = None
) -> list[dict[str, Any]]:
    """Return a row for each layer that costs something, in the model's order.

    Parameters
    ----------
    model : nn.Module
        Runs once, in eval mode, and is left as found.
    example : Tensor, tuple or dict
        Example arguments of its forward.
    profiled : Profile, optional
        Of the model, where it is known; then it does not run.

    Returns
    -------
    list of dict
        ``name``, ``type``, ``in`` and ``out`` (channels or features; None for what is neither a
        convolution nor a linear layer), ``groups`` (1 where there are none), ``params`` and
        ``macs`` (of one sample). A layer between gathers has the name of the dense one. Parameters
        and MACs add up to those of the model.

    Examples
    --------
    >>> layer_sizes(nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.ReLU()), torch.zeros(1, 2, 3, 3))
    [{'name': '0', 'type': 'Conv2d', 'in': 2, 'out': 4, 'groups': 2, 'params': 8, 'macs': 36}]
    """
    modules = dict(model.named_modules())
    # The layer itself is called conv there, see nni_gconv.groupconv.gather.
    wrapped = {f"{name}.conv": name for name, module in modules.items() if gathers_of(module)}
    rows = []
    for layer in (profiled or profile(model, example)).layers:
        if not layer.params and not layer.macs:
            continue
        module = modules[layer.name]
        sides = next(
            ([getattr(module, name) for name in names] for types, *names in _SIDES
             if isinstance(module, types)),
            [None, None],
        )  # fmt: skip
        rows.append(
            {
                "name": wrapped.get(layer.name, layer.name),
                "type": layer.type,
                "in": sides[0],
                "out": sides[1],
                "groups": groups_of(module) if sides[0] is not None else 1,
                "params": layer.params,
                "macs": layer.macs,
            }
        )
    return rows


def compare_sizes(
    small: nn.Module, dense: nn.Module, example: torch.Tensor
) -> dict[str, list[dict[str, Any]]]:
    """Return ``{"small": rows, "dense": rows}``, see :func:`layer_sizes`."""
    return {"small": layer_sizes(small, example), "dense": layer_sizes(dense, example)}
