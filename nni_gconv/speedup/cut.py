"""A plan carried out: masked weights, fewer channels, plain torch modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.graph import (
    Graph,
    place,
    rest_of,
    set_attributes,
    thin_norm,
    thin_standard,
    write_indices,
)
from nni_gconv.groupconv import wrap_gathers
from nni_gconv.speedup.fold import shift_bias
from nni_gconv.speedup.plan import Plan, TensorEdit

#: Filters with all they have, and what had gone of them before.
_Filters = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Replaced:
    """A tensor of the model, what took its place, and how the one became the other."""

    old: Tensor
    new: Tensor
    edit: TensorEdit | None
    kept: Tensor | None

    def cut(self, tensor: Tensor) -> Tensor:
        """Do to a tensor of the old shape what was done to the old tensor."""
        return cut_tensor(tensor, self.edit, self.kept)


def apply_plan(
    model: nn.Module,
    graph: Graph,
    plan: Plan,
    kept: Mapping[str, Tensor],
    ready: Iterable[Replaced] = (),
) -> list[Replaced]:
    """Cut a model in place: masked weights, fewer channels, plain torch modules.

    The model's class and forward stay; only parameters, buffers and the width attributes of its
    layers change.

    Parameters
    ----------
    model : nn.Module
        The model that was traced, or a copy of it.
    graph, plan, kept
        The trace, what to cut, and the masks by parameter name.
    ready : iterable of Replaced
        What the same plan made of a copy. Tensors that the copy shared with `model` are taken from
        there; the copy must not be used any more.

    Returns
    -------
    list of Replaced
        One for each tensor that is another one now.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    # Both tensors of a pair stay alive here: another one in their memory would look like them.
    standing = {
        name: _filters_kept(modules[name], name, graph, plan, kept) for name in plan.standards
    }
    finished = {id(replaced.old): replaced for replaced in ready}
    by_old: dict[int, Replaced] = {}
    by_new: dict[int, Replaced] = {}
    for name in sorted({*plan.tensors, *plan.factors, *kept}):
        for alias in graph.aliases[name]:
            path, _, attribute = alias.rpartition(".")
            module = modules[path]
            old = getattr(module, attribute)
            if id(old) in by_new:  # the module has several names and was met under another
                continue
            if id(old) not in by_old:  # else it is tied to a tensor that is cut already
                made = finished.get(id(old)) or _replacement(
                    old, plan.tensors.get(name), kept.get(name), plan.factors.get(name)
                )
                by_old[id(old)] = by_new[id(made.new)] = made
            _assign(module, attribute, by_old[id(old)].new)
    for layer, shift in plan.shifts.items():
        shift_bias(modules[layer], shift)
    for grouping in plan.groups:
        convolution: Any = modules[grouping.module]
        convolution.groups = len(grouping.columns)
        convolution.in_channels = sum(map(len, grouping.columns))
        convolution.out_channels = len(grouping.rows)
    for module in modules.values():
        _set_widths(module)
    write_indices(modules, graph, plan.indices)
    set_attributes(model, plan.attributes)
    _thin_norms(modules, plan, standing)
    for name, padding in plan.pads.items():
        modules[name].padding = tuple(padding)  # type: ignore[assignment]
    for grouping in plan.groups:
        if grouping.gathers:
            wrap_gathers(model, grouping.module, grouping.gather_in, grouping.gather_out)
    return list(by_old.values())


def _thin_norms(
    modules: Mapping[str, nn.Module], plan: Plan, standing: Mapping[str, _Filters]
) -> None:
    """Tell norms, of values and of filters, what they have left."""
    for name, width in plan.norms.items():
        _set_norm_width(modules[name], width)
    for name, norm in plan.thinned.items():
        thin_norm(modules[name], norm)
    for name, standard in plan.standards.items():
        new: Any = modules[name].weight
        thin_standard(modules[name], standard, rest_of(*standing[name], new, standard))


def _filters_kept(
    module: nn.Module, name: str, graph: Graph, plan: Plan, kept: Mapping[str, Tensor]
) -> _Filters:
    """Return the filters of a layer that stay, with all they have, and what had gone of them."""
    found: list[Tensor | None] = []
    for attribute in ("weight", "rest"):
        tensor = getattr(module, attribute, None)
        if tensor is None:
            found.append(None)
            continue
        first = graph.aliases[f"{name}.{attribute}".lstrip(".")][0]
        keep = plan.tensors.get(first, TensorEdit()).keep
        rows = TensorEdit({0: keep[0]}) if 0 in keep else None
        found.append(cut_tensor(tensor.detach(), rows, kept.get(first)))
    assert found[0] is not None
    return found[0], found[1]


def _replacement(
    old: Tensor, edit: TensorEdit | None, kept: Tensor | None, factors: list[float] | None
) -> Replaced:
    whole = old.detach()
    if factors is not None:
        whole = whole * place(torch.tensor(factors, dtype=torch.float64).to(whole), whole.dim(), 1)
    new = cut_tensor(whole, edit, kept).clone(memory_format=_format_of(old))
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    return Replaced(old, new, edit, kept)


def _format_of(tensor: Tensor) -> torch.memory_format:
    """Return how a tensor lies in memory, where picking channels would forget it."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(tensor.dim())
    if wanted is None or tensor.is_contiguous():
        return torch.preserve_format
    return wanted if tensor.is_contiguous(memory_format=wanted) else torch.preserve_format


def _assign(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        module._parameters[attribute] = tensor
    else:
        module._buffers[attribute] = tensor


def cut_tensor(tensor: Tensor, edit: TensorEdit | None, kept: Tensor | None = None) -> Tensor:
    """Mask a tensor and apply one edit to it."""
    select = _selection(edit, tensor.device)
    if kept is None:
        return select(tensor)
    # What goes need not be masked first: of a large layer it is the larger part.
    return select(tensor).masked_fill(~select(kept.to(tensor.device)), 0)


def _selection(edit: TensorEdit | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what picks the positions that stay; the lists are turned into tensors once."""
    if edit is None:
        return lambda tensor: tensor
    stays = {dim: torch.tensor(keep, device=device) for dim, keep in edit.keep.items()}
    columns = None if edit.columns is None else torch.tensor(edit.columns, device=device)

    def select(tensor: Tensor) -> Tensor:
        for dim, index in stays.items():
            tensor = tensor.index_select(dim, index)
        if columns is not None:
            index = columns.repeat_interleave(tensor.shape[0] // len(columns), dim=0)
            view = (*index.shape, *[1] * (tensor.dim() - 2))
            tensor = tensor.gather(1, index.view(view).expand(-1, -1, *tensor.shape[2:]))
        return tensor

    return select


def _set_widths(module: nn.Module) -> None:
    """Make the width attributes of a layer say what its tensors hold."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and isinstance(weight, Tensor):
        if module.groups > 1 and weight.shape[1] == 1 and module.in_channels == module.groups:
            multiplier = module.out_channels // module.groups
            module.groups = weight.shape[0] // multiplier
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        if module.groups > 1 and module.in_channels == module.groups:
            module.groups = module.weight.shape[0]
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]


def _set_norm_width(module: Any, width: int) -> None:
    if isinstance(module, nn.GroupNorm):
        together = module.num_channels // module.num_groups
        module.num_channels, module.num_groups = width, width // together
    else:
        module.num_features = width
