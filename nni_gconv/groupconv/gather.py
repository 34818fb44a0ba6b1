"""Permutations of channels that are left in a small model, as plain torch modules.

A layer that needs its channels in another order is put in ``Sequential(gather_in, conv,
gather_out)`` in its own place. The gathers are ``torch.fx`` graph modules of one ``index_select``:
they trace, export and pickle without this package.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

_CLASS = "ChannelGather"
_SIDES = {"in": "gather_in", "out": "gather_out"}


def channel_gather(index: Sequence[int], dim: int) -> fx.GraphModule:
    """Make a module that selects channels: ``index_select(x, dim, index)``.

    Examples
    --------
    >>> channel_gather([2, 0, 1], -3)(torch.arange(3.0).view(3, 1, 1)).flatten()
    tensor([2., 0., 1.])
    """
    graph = fx.Graph()
    value, at = graph.placeholder("x"), graph.get_attr("index")
    graph.output(graph.call_function(torch.index_select, (value, dim, at)))
    root = nn.Module()
    root.register_buffer("index", torch.tensor(index, dtype=torch.int64))
    return fx.GraphModule(root, graph, class_name=_CLASS)


def wrap_gathers(
    model: nn.Module,
    name: str,
    gather_in: Sequence[int] | None,
    gather_out: Sequence[int] | None,
) -> None:
    """Put gathers around a layer, under all its names.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    name : str
        Dotted name of a convolution; not the model itself.
    gather_in, gather_out : sequence of int or None
        Index of each; None: no gather there.
    """
    layer = model.get_submodule(name)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    dim = 1 - weight.dim()  # from behind: inputs may come without a batch
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if gather_in is not None:
        parts[_SIDES["in"]] = channel_gather(gather_in, dim).to(weight.device)
    parts["conv"] = layer
    if gather_out is not None:
        parts[_SIDES["out"]] = channel_gather(gather_out, dim).to(weight.device)
    wrapper = nn.Sequential(parts).train(layer.training)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is layer:
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, wrapper)


def gathers_of(module: nn.Module) -> dict[str, list[int]]:
    """Return the gathers around a layer, ``{"in": index, "out": index}`` as far as there are any.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(2, 2, 1))
    >>> wrap_gathers(net, "0", [1, 0], None)
    >>> gathers_of(net[0])
    {'in': [1, 0]}
    """
    if not isinstance(module, nn.Sequential):
        return {}
    found = {side: module._modules.get(name) for side, name in _SIDES.items()}
    return {
        side: gather.index.tolist()  # type: ignore[operator, union-attr]
        for side, gather in found.items()
        if is_gather(gather)
    }


def is_gather(module: nn.Module | None) -> bool:
    """Tell whether a module is one of :func:`channel_gather`; a copy has lost its class's name."""
    return isinstance(module, fx.GraphModule) and [n for n, _ in module.named_buffers()] == [
        "index"
    ]


def type_name(module: nn.Module) -> str:
    """Return the name of a module's class, of a copied gather that of the original."""
    return _CLASS if is_gather(module) else type(module).__name__


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the layer between gathers, or the module itself."""
    return module.conv if gathers_of(module) else module  # type: ignore[return-value]
