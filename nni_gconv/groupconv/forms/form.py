"""What forms there are, which of them a layer allows, and the layer in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from nni_gconv import compat
from nni_gconv.groupconv.forms.matmul import MatmulConv2d
from nni_gconv.groupconv.forms.merged import absorb_gathers, merged_conv
from nni_gconv.groupconv.forms.packed import packed_conv
from nni_gconv.groupconv.forms.split import split_conv
from nni_gconv.groupconv.gather import gathers_of, unwrapped, wrap_gathers

#: Names of the forms. ``plain`` is torch's own layer; what is ``packed`` is channels last.
KINDS = ("plain", "packed", "split", "matmul")

#: Merging groups costs this many times the MACs at most, unless it makes one group of all.
_MOST_WORK = 16


@dataclass(frozen=True)
class Form:
    """One way to compute a convolution.

    Attributes
    ----------
    kind : {"plain", "packed", "split", "matmul"}
        The kernel.
    groups : int
        Groups it runs with: G, or fewer that hold several each; 1 is the block-diagonal dense
        convolution, which takes the gathers around the layer into its weights.

    Examples
    --------
    >>> str(Form("packed", 2)), str(Form("plain", 1))
    ('packed, 2 groups', 'plain, dense')
    """

    kind: str
    groups: int

    def __str__(self) -> str:
        return f"{self.kind}, " + ("dense" if self.groups == 1 else f"{self.groups} groups")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Form | None:
        """Read back what :meth:`to_dict` gave; None: it is of no kind known here."""
        kind, groups = data.get("kind"), data.get("groups")
        if kind not in KINDS or type(groups) is not int or groups < 1:
            return None
        return cls(kind, groups)


def forms_of(unit: nn.Module) -> tuple[Form, ...]:
    """List the forms that a layer, or one between gathers, allows; the first is what it is.

    Parameters
    ----------
    unit : nn.Module
        What stands in the model.

    Returns
    -------
    tuple of Form
        Empty for what is no plain ``nn.Conv2d``: a class of its own, one with hooks or with
        computed weights.

    Examples
    --------
    >>> [str(form) for form in forms_of(nn.Conv2d(4, 4, 1, groups=2)) if form.kind != "packed"]
    ['plain, 2 groups', 'plain, dense', 'split, 2 groups', 'matmul, 2 groups']
    """
    layer = unwrapped(unit)
    if type(layer) is not nn.Conv2d or _has_hooks(layer):
        return ()
    counts = _group_counts(layer)
    kinds = ("plain", "packed") if _packs(layer) else ("plain",)
    found = [Form(kind, count) for count in counts for kind in kinds]
    if 1 < layer.groups <= _MOST_WORK:
        found.append(Form("split", layer.groups))
    if layer.groups > 1 and layer.weight.shape[1] > 1 and _is_product(layer):
        found.append(Form("matmul", layer.groups))
    return tuple(found)


def in_form(unit: nn.Module, form: Form, *, channels_last: bool = False) -> nn.Module:
    """Return a layer in a form, with the gathers that are still needed around it.

    Parameters
    ----------
    unit : nn.Module
        A layer or one between gathers; stays as it is.
    form : Form
        One of :func:`forms_of`.
    channels_last : bool, default False
        Memory format of the weights, which that of the output follows.

    Examples
    --------
    >>> conv = nn.Conv2d(4, 4, 3, groups=2)
    >>> made, x = in_form(conv, Form("plain", 1)), torch.randn(1, 4, 5, 5)
    >>> made.groups, torch.allclose(made(x), conv(x), atol=1e-6)
    (1, True)
    """
    layer: Any = unwrapped(unit)
    gathers: dict[str, list[int] | None] = {"in": None, "out": None, **gathers_of(unit)}
    with torch.no_grad():
        if form.kind == "split":
            made: nn.Module = split_conv(layer)
        elif form.kind == "matmul":
            made = MatmulConv2d(layer, channels_last)
        else:
            conv = merged_conv(layer, form.groups)
            if form.groups == 1:
                taken = _absorbed(gathers, layer.in_channels)
                conv = absorb_gathers(conv, taken["in"], taken["out"])
                gathers = {side: None if taken[side] else gathers[side] for side in gathers}
            made = packed_conv(conv) if form.kind == "packed" else conv
    made.requires_grad_(False)
    if form.kind != "matmul":
        order = torch.channels_last if channels_last else torch.contiguous_format
        made = made.to(memory_format=order)  # type: ignore[call-overload]
    made.train(layer.training)
    return _between(made, layer, gathers)


def _absorbed(gathers: Mapping[str, list[int] | None], width: int) -> dict[str, list[int] | None]:
    """The gathers that a dense layer takes in: of its input only a permutation, all of them."""
    index = gathers["in"]
    known = index is not None and sorted(index) == list(range(width))
    return {"in": index if known else None, "out": gathers["out"]}


def _between(
    made: nn.Module, layer: nn.Module, gathers: Mapping[str, list[int] | None]
) -> nn.Module:
    if not any(gathers.values()):
        return made
    holder = nn.Sequential(layer)  # the gathers ask a plain layer where it lies and how it is
    wrap_gathers(holder, "0", gathers["in"], gathers["out"])
    holder[0].conv = made  # type: ignore[assignment]
    return holder[0]


def _group_counts(layer: nn.Conv2d) -> list[int]:
    """G and what it merges into; one group of all unless the layer is depthwise."""
    groups, columns = layer.groups, layer.weight.shape[1]
    counts = [g for g in range(groups, 1, -1) if groups % g == 0 and groups <= _MOST_WORK * g]
    return counts + [1] * (columns > 1 or groups <= _MOST_WORK)


def _packs(layer: nn.Conv2d) -> bool:
    simple = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return simple and compat.packs_convolutions()


def _is_product(layer: nn.Conv2d) -> bool:
    return set(layer.kernel_size) == {1} and set(layer.padding) == {0}


def _has_hooks(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
        or layer._backward_pre_hooks
    )  # fmt: skip
