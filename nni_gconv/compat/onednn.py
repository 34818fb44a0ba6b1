"""Convolutions on packed weights: operators that torch has for its compiler, used in eager mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def packs_convolutions() -> bool:
    """Tell whether torch can keep a convolution's weights as oneDNN wants them."""
    import torch

    packs = hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    return (
        packs
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def can_run_packed(x: Tensor, weight: Tensor) -> bool:
    """Tell whether a convolution runs on packed weights: real float32 images on a CPU, no training.

    While a model is traced, compiled or exported it is an ordinary convolution.
    """
    import torch

    plain = type(x) is torch.Tensor and x.dim() == 4 and x.numel() > 0
    return (
        plain
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.utils._python_dispatch._get_current_dispatch_mode() is None
        and not torch.is_autocast_enabled("cpu")
    )


def pack_convolution(layer: Any, shape: Any) -> Tensor:
    """Return the weight of an ``nn.Conv2d`` in oneDNN's order for inputs of a shape; others run."""
    import torch

    pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    return pack(
        layer.weight.detach().to_mkldnn(),
        list(layer.padding),
        list(layer.stride),
        list(layer.dilation),
        layer.groups,
        list(shape),
    )


def run_packed(layer: Any, packed: Tensor, x: Tensor) -> Tensor:
    """Run an ``nn.Conv2d`` on the weights of :func:`pack_convolution`."""
    import torch

    return torch.ops.mkldnn._convolution_pointwise(
        x, packed, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups,
        "none", [], "",
    )  # fmt: skip
