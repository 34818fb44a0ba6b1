"""A whole network with every layer in its quickest form, for timing it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from nni_gconv.groupconv.forms.form import in_form
from nni_gconv.groupconv.forms.timing import FormTimer
from nni_gconv.groupconv.forms.units import find_units
from nni_gconv.groupconv.layers import replace_layers


def quickest_copy(model: nn.Module, dummy_input: Any, timer: FormTimer) -> nn.Module:
    """Return a copy whose layers have their quickest forms in the better memory format.

    Norms are not folded and whole networks not compared, see :func:`nni_gconv.optimize` for that.

    Parameters
    ----------
    model : nn.Module
        Stays as it is.
    dummy_input : Tensor, tuple or dict
        What it is called on.
    timer : FormTimer
        Knows the layers that it has timed before.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()).eval()
    >>> x = torch.randn(1, 4, 6, 6)
    >>> made = quickest_copy(net, x, FormTimer(min_runs=1, min_seconds=0))
    >>> torch.allclose(made(x), net(x), atol=1e-5)
    True
    """
    copied = copy.deepcopy(model).eval()
    units = find_units(copied, dummy_input)
    best = {}
    for last in (False, True):
        forms = [
            next(row for row in timer.times(u.module, u.shape) if row.channels_last == last)
            for u in units
        ]
        total = sum(f.milliseconds * u.calls for f, u in zip(forms, units, strict=True))
        best[last] = total, forms
    last = best[True][0] < best[False][0]
    if last:
        copied = copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    new = {
        unit.module: in_form(unit.module, row.form, channels_last=last)
        for unit, row in zip(units, best[last][1], strict=True)
    }
    replace_layers(copied, new)
    return copied
