"""Batch norms as part of the layers before them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from nni_gconv.graph import Graph, op_name, trace
from nni_gconv.groupconv import gathers_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def fold_batch_norms(model: nn.Module, dummy_input: Any) -> nn.Module:
    """Return a copy for inference whose batch norms are part of the convolutions before them.

    A norm is folded when it alone reads a convolution or linear layer and both are called once;
    others stay. A permutation of channels may stand between the two.

    Parameters
    ----------
    model : nn.Module
        Left as it was found.
    dummy_input : Tensor, tuple or dict
        Example arguments, for tracing.

    Returns
    -------
    nn.Module
        In eval mode, with ``nn.Identity`` where a norm was folded.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> type(fold_batch_norms(net, torch.zeros(1, 3, 8, 8))[1]).__name__
    'Identity'
    """
    return fold_into(copy.deepcopy(model).eval(), foldable_norms(model, dummy_input))


def foldable_norms(model: nn.Module, dummy_input: Any) -> dict[str, str]:
    """Find the norms that can be folded: dotted name -> name of the layer before it."""
    graph = trace(model, dummy_input)
    applying = [n for n in graph.nodes if op_name(n) == "batch_norm" or _applies_weight(graph, n)]
    calls = Counter(map(graph.owner, applying))
    names = Counter(map(id, graph.modules.values()))
    found = {}
    for node in applying:
        source, norm = node.args[0], graph.owner(node)
        if op_name(node) != "batch_norm" or not isinstance(source, Node):
            continue
        if len(source.users) > 1:
            continue
        source = _before_gather(graph, source)
        if not _applies_weight(graph, source) or len(source.users) > 1:
            continue
        layer = graph.owner(source)
        if calls[layer] != 1 or calls[norm] != 1:
            continue
        if any(names[id(graph.modules[name])] > 1 for name in (layer, norm)):
            continue  # the copy would change under one of its names only
        if _folds(graph.modules[layer], graph.modules[norm], source.meta["val"].dim() == 2):
            found[norm] = layer
    return found


def fold_into(model: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    """Fold norms into layers, in place; nothing is folded where a pair is not as expected.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    pairs : mapping of str to str
        From :func:`foldable_norms`.

    Raises
    ------
    KeyError
        The model has no such modules, or they cannot be folded.
    """
    for norm_name, layer_name in pairs.items():
        try:
            layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        except AttributeError as error:
            raise KeyError(str(error)) from None
        # A linear layer was seen to have its channels where its norm has.
        if not _folds(layer, norm, True):
            raise KeyError(f"{norm_name} cannot be folded into {layer_name}")
        index = _gathered(model, layer_name)
        fused = _fuse(layer, norm if index is None else _reordered(norm, index))
        model.set_submodule(layer_name, fused)
        model.set_submodule(norm_name, nn.Identity())
    return model


def _applies_weight(graph: Graph, node: Node) -> bool:
    """Tell whether an operator gets the weight of its layer as it is, not one made of it."""
    weight = node.args[1] if len(node.args) > 1 else None
    name = graph.tensors.get(weight.name, "") if isinstance(weight, Node) else ""
    return f"{graph.owner(node)}.weight".lstrip(".") in graph.aliases.get(name, ())


def _before_gather(graph: Graph, node: Node) -> Node:
    """Return what a permutation behind a layer permutes; what is no such thing as it is."""
    wrapper, _, attribute = graph.owner(node).rpartition(".")
    if op_name(node) != "index_select" or attribute != "gather_out":
        return node
    index = gathers_of(graph.modules[wrapper]).get("out", [])
    source = node.args[0]
    whole = sorted(index) == list(range(len(index)))
    return source if whole and isinstance(source, Node) else node


def _gathered(model: nn.Module, layer: str) -> list[int] | None:
    wrapper, _, attribute = layer.rpartition(".")
    return gathers_of(model.get_submodule(wrapper)).get("out") if attribute == "conv" else None


def _reordered(norm: Any, index: list[int]) -> nn.Module:
    """The norm of channels before a permutation that was made for those behind it."""
    back = torch.tensor(index).argsort().to(norm.running_mean.device)
    made = copy.deepcopy(norm)
    with torch.no_grad():
        for tensor in (made.weight, made.bias, made.running_mean, made.running_var):
            if isinstance(tensor, Tensor):
                tensor.copy_(tensor[back])
    return made


def _folds(layer: nn.Module, norm: nn.Module, rows: bool) -> bool:
    """Tell whether a norm has statistics and its channels are the outputs of a layer."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return False
    if isinstance(layer, nn.Linear):
        return rows
    return isinstance(layer, _CONVOLUTIONS) or (
        isinstance(layer, _TRANSPOSED) and layer.groups == 1
    )


def _fuse(layer: Any, norm: Any) -> nn.Module:
    """Fold one norm into one layer.

    A norm's scale near zero makes weights below the smallest normal number of float32. They add
    nothing to float32 outputs, but with some hundred of them a network takes twice as long.
    """
    if isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_eval(layer, norm)
    else:
        fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _TRANSPOSED))
    weight = fused.weight.data
    if weight.dtype is torch.float32:
        weight[weight.abs() < torch.finfo(torch.float32).tiny] = 0
    return fused
