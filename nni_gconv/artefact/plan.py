"""What every layer of a small model is, as data, and the model made from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from nni_gconv.errors import CheckpointError
from nni_gconv.graph import (
    Attribute,
    ChannelNorm,
    KeptNorm,
    KeptStandardConv2d,
    find_norm,
    find_standard,
    set_attributes,
    thin_norm,
    thin_standard,
    widths_of,
)
from nni_gconv.groupconv import gathers_of, type_name, wrap_gathers
from nni_gconv.speedup import steps_of, take_out

FORMAT = 1
"""Version of the plan; a file of a newer one is refused."""

#: Attributes that hold a layer's width, by type; everything else the architecture gives.
_WIDTHS: tuple[tuple[tuple[type, ...], tuple[str, ...]], ...] = (
    ((nn.modules.conv._ConvNd,), ("in_channels", "out_channels", "groups")),
    ((nn.Linear,), ("in_features", "out_features")),
    ((nn.Bilinear,), ("in1_features", "in2_features", "out_features")),
    ((nn.Embedding, nn.EmbeddingBag), ("num_embeddings", "embedding_dim")),
    ((nn.modules.batchnorm._NormBase,), ("num_features",)),
    ((nn.GroupNorm,), ("num_groups", "num_channels")),
    ((nn.LayerNorm, nn.RMSNorm), ("normalized_shape",)),
    ((nn.MultiheadAttention,), ("embed_dim", "kdim", "vdim", "num_heads", "head_dim")),
    ((nn.PReLU,), ("num_parameters",)),
    ((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), ("padding",)),
)


def plan_of(model: nn.Module) -> dict[str, Any]:
    """Describe what every layer of a model is, as JSON-able data.

    Parameters
    ----------
    model : nn.Module
        Usually what :class:`nni_gconv.ModelSpeedup` returned.

    Returns
    -------
    dict
        ``{"format": 1, "model": class name, "modules": {name: {"type", "attrs", "tensors"}},
        "gathers": {name: {"in": index, "out": index}}, "blocks": {name: [step, ...]},
        "norms": {name: {"dims", "eps", "width", "kept", ...}}, "standards": {name: {"eps", "count",
        ...}}, "widths": {name: {attribute: integer or list}}}``. The last five only where needed:
        permutations of channels around a layer, which is then called ``name.conv``, residual blocks
        that became a sequence of some of their modules and of activations, norms over channels and
        convolutions with standardised filters that count what went, and attributes that a forward
        asks for.

    Examples
    --------
    >>> plan_of(nn.Sequential(nn.Linear(2, 3)))["modules"]["0"]["attrs"]
    {'in_features': 2, 'out_features': 3}
    """
    modules: dict[str, Any] = {}
    gathers: dict[str, Any] = {}
    blocks: dict[str, Any] = {}
    norms: dict[str, Any] = {}
    standards: dict[str, Any] = {}
    widths: dict[str, Any] = {}
    for name, module in model.named_modules():
        if (steps := steps_of(module)) is not None:
            blocks[name] = steps
        if indices := gathers_of(module):
            gathers[name] = indices
        if held := widths_of(module):
            widths[name] = {attribute: _plain(value) for attribute, value in held.items()}
        if isinstance(module, KeptNorm):
            norms[name] = {**asdict(module.norm), "dims": list(module.norm.dims)}
        if isinstance(module, KeptStandardConv2d):
            standards[name] = asdict(module.standard)
        tensors = {n: list(t.shape) for n, t in _own_tensors(module).items()}
        attributes = {a: _plain(getattr(module, a)) for a in _width_attributes(module)}
        unsaved = {n: list(b.shape) for n, b in _unsaved(module).items()}
        if tensors or attributes or unsaved:
            modules[name] = {
                "type": type_name(module),
                "attrs": attributes,
                "tensors": tensors,
                **({"unsaved": unsaved} if unsaved else {}),
            }
    plan = {"format": FORMAT, "model": type(model).__name__, "modules": modules}
    more = {
        "gathers": gathers, "blocks": blocks, "norms": norms, "standards": standards,
        "widths": widths,
    }  # fmt: skip
    return {**plan, **{key: value for key, value in more.items() if value}}


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    persistent = {
        n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set
    }
    return {n: t for n, t in {**module._parameters, **persistent}.items() if t is not None}


def _unsaved(module: nn.Module) -> dict[str, Tensor]:
    """Return buffers that no file holds; what was cut of them is the same for each channel."""
    names = module._non_persistent_buffers_set
    return {n: b for n, b in module._buffers.items() if n in names and b is not None}


def _width_attributes(module: nn.Module) -> tuple[str, ...]:
    return next((names for types, names in _WIDTHS if isinstance(module, types)), ())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def rebuild(
    model: nn.Module, plan: Mapping[str, Any], *, initialise: bool = True, where: str = "plan"
) -> nn.Module:
    """Give every layer of a dense model the widths of a plan, for training from scratch.

    Parameters
    ----------
    model : nn.Module
        The untouched architecture; changed in place.
    plan : mapping
        From :func:`plan_of`, or under ``"plan"`` in what :func:`read_plan` returns.
    initialise : bool, default True
        Draw new weights for layers that change, as their classes do when they are made
        (``reset_parameters``); tensors of modules that have no such method are cut.
    where : str
        Named in messages.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    CheckpointError
        The architecture does not fit the plan; names the first layer that differs.

    Examples
    --------
    >>> plan = plan_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    >>> rebuild(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1)), plan)
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): Linear(in_features=3, out_features=1, bias=True)
    )
    """
    for name, steps in plan.get("blocks", {}).items():
        try:
            take_out(model, name, steps)
        except AttributeError:
            raise CheckpointError(
                f"{where} is of another architecture: {type(model).__name__} has no block {name!r} "
                f"with {', '.join(steps) or 'anything'}"
            ) from None
    for name, indices in plan.get("gathers", {}).items():
        try:
            wrap_gathers(model, name, indices.get("in"), indices.get("out"))
        except AttributeError:
            raise CheckpointError(
                f"{where} is of another architecture: {type(model).__name__} has no layer {name!r} "
                "that could be put between gathers"
            ) from None
    modules = dict(model.named_modules())
    for name, entry in plan.get("norms", {}).items():
        _thin(modules.get(name), entry, f"{where}: {name}")
    for name, entry in plan.get("standards", {}).items():
        _count_filters(modules.get(name), entry, f"{where}: {name}")
    for name, held in plan.get("widths", {}).items():
        _set_widths(model, name, modules.get(name), held, where)
    _check_architecture(model, plan, modules, where)
    tied: list[tuple[Tensor, Tensor]] = []
    for name, layer in plan["modules"].items():
        changed = _reshape(modules[name], layer, tied)
        for buffer, shape in layer.get("unsaved", {}).items():
            _narrow(modules[name], buffer, shape)
        if changed and initialise and hasattr(modules[name], "reset_parameters"):
            modules[name].reset_parameters()  # type: ignore[operator]
    return model


def _check_architecture(
    model: nn.Module, plan: Mapping[str, Any], modules: Mapping[str, nn.Module], where: str
) -> None:
    for name, layer in plan["modules"].items():
        module = modules.get(name)
        if module is None:
            raise CheckpointError(
                f"{where} is of another architecture: {plan['model']} has {name!r}, "
                f"{type(model).__name__} has not"
            )
        if type(module).__name__ != layer["type"]:
            raise CheckpointError(
                f"{where} is of another architecture: {name} is a {layer['type']}, "
                f"here a {type(module).__name__}"
            )
    extra = [n for n, m in modules.items() if _own_tensors(m) and n not in plan["modules"]]
    if extra:
        raise CheckpointError(f"{where} is of another architecture: it has no layer {extra[0]!r}")


def _thin(module: nn.Module | None, entry: Mapping[str, Any], where: str) -> None:
    """Let a norm over channels count those that went; it has to be the norm that was cut."""
    dense = None if module is None else find_norm(module)
    try:
        norm = ChannelNorm(**{**entry, "dims": tuple(entry["dims"])})
        widths = [norm.channel, norm.width, norm.kept]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{where}: no norm can be read here ({error})") from None
    if not all(type(w) is int for w in widths) or not 0 < norm.kept <= norm.width:
        raise CheckpointError(f"{where}: a norm of {norm.kept} of {norm.width} channels")
    if dense is None or replace(norm, channel=0, width=1, kept=1) != replace(
        dense, channel=0, width=1, kept=1
    ):
        raise CheckpointError(f"{where} is of another architecture: here is no such norm")
    thin_norm(module, norm)  # type: ignore[arg-type]


def _count_filters(module: nn.Module | None, entry: Mapping[str, Any], where: str) -> None:
    """Let a convolution with standardised filters count what went; it has to be the one cut."""
    dense = None if module is None else find_standard(module)
    factor = entry.get("factor")
    # It was found by trying, to rounding.
    near = dense and isinstance(factor, float) and math.isclose(factor, dense.factor, rel_tol=1e-9)
    if dense is None or not near or {**entry, "factor": dense.factor} != asdict(dense):
        raise CheckpointError(
            f"{where} is of another architecture: here is no convolution that standardises "
            "its filters so"
        )
    weight: Any = module.weight  # type: ignore[union-attr]
    thin_standard(module, dense, weight.new_zeros(len(weight), 4).detach())  # type: ignore[arg-type]


def _set_widths(
    model: nn.Module, name: str, module: nn.Module | None, held: Mapping[str, Any], where: str
) -> None:
    """Set integers that a forward asks for: such as are there, and to no more than they are."""
    for attribute, value in held.items():
        old: Any = None if module is None else vars(module).get(attribute)
        one, many = type(value) is int, type(value) is list
        olds = [old] if one else list(old) if many and type(old) in (list, tuple) else []
        news = [value] if one else value if many else []
        fits = len(olds) == len(news) > 0 and all(
            (type(a) is int and type(b) is int and 0 < b <= a) or a == b
            for a, b in zip(olds, news, strict=True)
        )
        if not fits:
            raise CheckpointError(
                f"{where} is of another architecture: {name}.{attribute} cannot be {value!r}"
            )
        places = [-1] if one else range(len(news))
        changed = {Attribute(name, attribute, p): n for p, n in zip(places, news, strict=True)}
        set_attributes(model, changed)


def _narrow(module: nn.Module, name: str, shape: list[int]) -> None:
    old = module._buffers.get(name)
    if old is None or old.dim() != len(shape) or any(a > b for a, b in zip(shape, old.shape)):  # noqa: B905
        return  # another size of the input, say: it was no channel that went
    module._buffers[name] = old[tuple(map(slice, shape))].clone()


def _reshape(
    module: nn.Module, layer: Mapping[str, Any], tied: list[tuple[Tensor, Tensor]]
) -> bool:
    """Give one layer its widths; tell whether a tensor changed.

    `tied` holds the tensors replaced so far, old and new.
    """
    before = _own_tensors(module)
    for attribute in layer["attrs"]:
        if attribute not in _width_attributes(module):
            raise CheckpointError(f"a plan may not set {attribute!r} of a {type(module).__name__}")
    for attribute, value in layer["attrs"].items():
        setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
    reference = next(iter(before.values()), torch.empty(0))
    for name, shape in layer["tensors"].items():
        old = module._parameters.get(name, module._buffers.get(name))
        if isinstance(old, Tensor) and list(old.shape) == shape:
            continue
        known = next((new for before, new in tied if old is before), None)
        if known is not None:
            setattr(module, name, known)
            continue
        source = old if isinstance(old, Tensor) else reference
        new = torch.zeros(shape, dtype=source.dtype, device=source.device)
        if isinstance(old, Tensor) and old.dim() == new.dim():
            common = tuple(slice(min(pair)) for pair in zip(old.shape, shape, strict=True))
            new[common] = old.detach()[common]
        if name not in module._buffers:
            gradient = source.requires_grad if isinstance(source, nn.Parameter) else True
            new = nn.Parameter(new, requires_grad=gradient)
        setattr(module, name, new)
        if isinstance(old, Tensor):
            tied.append((old, new))
    for name in [n for n in _own_tensors(module) if n not in layer["tensors"]]:
        (module._parameters if name in module._parameters else module._buffers)[name] = None
    after = _own_tensors(module)
    return len(before) != len(after) or any(after[name] is not old for name, old in before.items())
