"""The networks of other packages that benchmarks/sweep.py cuts, and how they are built."""

from __future__ import annotations

import re
from typing import Any

#: timm's files of networks in which nothing but the patch embedding is a convolution.
NO_CNN = frozenset(
    "beit cait convit crossvit davit deepseek_vit deit eva gemma4_vit hiera hieradet_sam2 "
    "mlp_mixer mvitv2 naflexvit nest pit qwen3_vit sequencer swin_transformer "
    "swin_transformer_v2 swin_transformer_v2_cr tnt twins vision_transformer "
    "vision_transformer_relpos vision_transformer_sam volo xcit".split()
)
#: Side of the image where a network does not ask for another one.
SIDE = 96
#: One encoder of each family below the decoders of segmentation-models-pytorch.
ENCODERS = (
    "resnet18",
    "efficientnet-b0",
    "mobilenet_v2",
    "timm-regnetx_002",
    "densenet121",
    "vgg11_bn",
)
#: Parts of names that say how large a network is.
SMALL = frozenset(
    "test nano atto femto pico tiny xxs xs x xx s s0 s1 small b0 t t0 w1 w3d4".split()
)
LARGE = frozenset("huge giant xlarge xxl xl large large2 l base b b5 b6 b7 b8 x32 x48".split())
#: Networks of pytorchcv that differ from others in the number of classes alone.
TWINS = ("_cifar100", "_svhn", "_cub", "_voc", "_coco", "_celebamaskhq")
#: Above so many parameters a network is left out.
MOST = 60e6


def names(each: int) -> list[str]:
    """List the networks, `each` of every file of timm and family of pytorchcv, small ones first."""
    return [*_timm(each), *_pytorchcv(each), *_smp(each)]


def _timm(each: int) -> list[str]:
    import timm

    found = []
    for file in timm.list_modules():
        if file not in NO_CNN:
            made = sorted(timm.list_models(module=file), key=lambda n: (_size(n), n))
            found += [f"timm:{name}" for name in made[:each]]
    return found


def _size(name: str) -> int:
    """Guess how large a network is from its name: the small ones run in seconds."""
    parts = set(re.split(r"[_\W]", name))
    numbers = [int(n) for n in re.findall(r"\d+", re.sub(r"_cifar\d+|_\d\d\d$", "", name))]
    if parts & LARGE or any(100 <= n <= 1300 for n in numbers):
        return 2
    return 0 if parts & SMALL or any(10 <= n <= 34 for n in numbers) else 1


def _pytorchcv(each: int) -> list[str]:
    from pytorchcv.model_provider import _models

    families: dict[str, list[str]] = {}
    for name, function in _models.items():
        if not name.endswith(TWINS):
            families.setdefault(function.__module__, []).append(name)
    return [
        f"pytorchcv:{name}"
        for made in families.values()
        for name in sorted(made, key=lambda n: (_size(n), n))[:each]
    ]


def _smp(each: int) -> list[str]:
    import segmentation_models_pytorch as smp

    decoders = sorted(name.lower() for name in smp.MODEL_ARCHITECTURES_MAPPING)
    return [f"smp:{d}/{e}" for d in decoders for e in ENCODERS[: each + 1]]


def build(name: str) -> tuple[Any, Any]:
    """Build a network in eval mode without downloads, and an input for it.

    Raises
    ------
    ValueError
        It takes no image, or is too large.
    """
    import torch
    from speedup_models import randomise

    torch.manual_seed(0)
    kind, _, bare = name.partition(":")
    model, shape = {"timm": _build_timm, "pytorchcv": _build_pytorchcv, "smp": _build_smp}[kind](
        bare
    )
    size = sum(p.numel() for p in model.parameters())
    if size > MOST:
        raise ValueError(f"left out: {size / 1e6:.0f} million parameters")
    model = model.eval()
    dummy = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    enrich(model)
    randomise(model, dummy)
    return model, dummy


def enrich(model: Any) -> None:
    """Give random values to constant parameters: layer scales of 1e-6 hide branches.

    Buffers of positions that are all zero (CondenseNet's, which its training fills) pick channels
    in a random order.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            first = float(parameter.flatten()[0]) if parameter.numel() else 0.0
            if parameter.numel() > 1 and bool((parameter == first).all()):
                low, high = (-0.2, 0.3) if first == 0 else (0.6, 1.4)
                parameter.uniform_(low, high, generator=generator)
        for buffer in model.buffers():
            if buffer.dtype == torch.int64 and buffer.numel() > 1 and not bool(buffer.any()):
                buffer.copy_(torch.randperm(buffer.numel(), generator=generator))


def _build_timm(name: str) -> tuple[Any, tuple[int, ...]]:
    import timm
    import torch

    model = timm.create_model(name, pretrained=False).eval()
    config = model.default_cfg
    channels, side = config["input_size"][0], config["input_size"][-1]
    small = (channels, min(side, SIDE), min(side, SIDE))
    if not config.get("fixed_input_size"):
        try:
            with torch.no_grad():
                model(torch.zeros(2, *small))
        except Exception:  # a network with positions of its own
            return model, (channels, side, side)
        return model, small
    return model, (channels, side, side)


def _build_pytorchcv(name: str) -> tuple[Any, tuple[int, ...]]:
    import torch
    from pytorchcv.model_provider import get_model

    model = get_model(name, pretrained=False).eval()
    side = getattr(model, "in_size", (224, 224))[0]
    channels = next(m.in_channels for m in model.modules() if hasattr(m, "in_channels"))
    small = (channels, min(side, SIDE), min(side, SIDE))
    try:
        with torch.no_grad():
            model(torch.zeros(2, *small))
    except Exception:
        return model, (channels, side, side)
    return model, small


def _build_smp(name: str) -> tuple[Any, tuple[int, ...]]:
    import segmentation_models_pytorch as smp

    decoder, _, encoder = name.partition("/")
    model = smp.create_model(decoder, encoder_name=encoder, encoder_weights=None, classes=5)
    return model, (3, SIDE, SIDE)
