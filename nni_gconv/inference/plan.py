"""What a network for inference is made of, as data, and the network made from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.groupconv.forms import Form, forms_of, in_form
from nni_gconv.inference.norms import fold_into

#: Version of the plan; a newer one is not known here, and its layers stay as they are.
FORMAT = 1


@dataclass(frozen=True)
class LayerForm:
    """How one layer is computed.

    Attributes
    ----------
    form : Form or None
        None: a form of a later version; the layer stays as it is.
    channels_last : bool
        Memory format of its weights and output.
    convert : bool
        Its input is brought into that format first.
    """

    form: Form | None
    channels_last: bool = False
    convert: bool = False


@dataclass(frozen=True)
class FormPlan:
    """All choices for one network; weights are no part of it.

    Attributes
    ----------
    layers : dict of str to LayerForm
        Dotted name of a layer, or of what stands between gathers -> its form.
    folded : dict of str to str
        Dotted name of a norm -> the layer that takes it in.
    channels_last : bool
        Memory format of all other weights.
    measured : dict
        On what and for what it was chosen: machine, torch, threads, batch.
    """

    layers: dict[str, LayerForm] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    channels_last: bool = False
    measured: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        layers = {
            name: {
                **({} if layer.form is None else layer.form.to_dict()),
                "channels_last": layer.channels_last,
                "convert": layer.convert,
            }
            for name, layer in self.layers.items()
        }
        return {
            "format": FORMAT,
            "layers": layers,
            "folded": self.folded,
            "channels_last": self.channels_last,
            "measured": self.measured,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FormPlan:
        """Read back what :meth:`to_dict` gave; forms that are not known here become None.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is no such plan.

        Examples
        --------
        >>> plan = FormPlan({"conv": LayerForm(Form("split", 2))})
        >>> FormPlan.from_dict(plan.to_dict()) == plan
        True
        """
        if int(data["format"]) > FORMAT:
            return cls()
        layers = {
            name: LayerForm(
                Form.from_dict(entry), bool(entry["channels_last"]), bool(entry["convert"])
            )
            for name, entry in data["layers"].items()
        }
        folded = {str(norm): str(layer) for norm, layer in data["folded"].items()}
        return cls(layers, folded, bool(data["channels_last"]), dict(data["measured"]))


class ToMemoryFormat(nn.Module):
    """Brings images into a memory format; the numbers stay."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last

    def forward(self, input: Tensor) -> Tensor:
        """Copy where the format is another one."""
        if input.dim() != 4:
            return input
        last = self.channels_last
        order = torch.channels_last if last else torch.contiguous_format
        return input.contiguous(memory_format=order)

    def extra_repr(self) -> str:
        """Name the format."""
        return "channels_last" if self.channels_last else "contiguous"


def apply_forms(model: nn.Module, plan: FormPlan) -> nn.Module:
    """Return a copy for inference: norms folded, every layer in its form.

    Parameters
    ----------
    model : nn.Module
        The network that the plan was made for, in any precision and on any device; it stays.
    plan : FormPlan
        Its choices. A layer that does not allow its form stays as it is.

    Returns
    -------
    nn.Module
        In eval mode; nothing in it wants gradients.

    Raises
    ------
    KeyError
        The network has no such layers.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4))
    >>> plan = FormPlan({"0": LayerForm(Form("plain", 1))}, folded={"1": "0"})
    >>> apply_forms(net, plan)
    Sequential(
      (0): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
    )
    """
    made = fold_into(copy.deepcopy(model).eval(), plan.folded)
    if plan.channels_last:
        made = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made.requires_grad_(False)
    named = dict(made.named_modules(remove_duplicate=False))
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in plan.layers.items():
        unit = named[name]
        if layer.form is None or layer.form not in forms_of(unit):
            continue
        module = in_form(unit, layer.form, channels_last=layer.channels_last)
        if layer.convert:
            module = nn.Sequential(ToMemoryFormat(layer.channels_last), module).eval()
        new[unit] = module
    for name, module in named.items():
        if module in new:
            parent, _, attribute = name.rpartition(".")
            setattr(named[parent], attribute, new[module])
    return made
