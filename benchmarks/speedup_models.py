"""What benchmarks/speedup.py runs: the models, their inputs and masks, and the comparison."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Image side where 224 would cost minutes, or where the architecture wants another.
SIDES = {
    "inception_v3": 299, "vit_l_16": 96, "vit_h_14": 98, "convnext_large": 96, "regnet_x_32gf": 96,
    "regnet_y_32gf": 96, "regnet_y_128gf": 96, "fcn_resnet50": 96, "fcn_resnet101": 96,
    "deeplabv3_resnet50": 96, "deeplabv3_resnet101": 96, "fasterrcnn_resnet50_fpn_v2": 96,
    "maskrcnn_resnet50_fpn_v2": 96, "retinanet_resnet50_fpn_v2": 96, "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 320,
}  # fmt: skip
#: A network or two of each family, on which the peers run too.
COMPARED = frozenset(
    ["zoo:resnet20", "zoo:resnet56", "zoo:resnet56b", "zoo:preresnet56", "zoo:vgg16",
     "zoo:densenet40", "zoo:condensenet86"]
    + [
        f"torchvision:{name}"
        for name in (
            "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s",
            "googlenet", "inception_v3", "maxvit_t", "mnasnet1_0", "mobilenet_v2",
            "mobilenet_v3_small", "mobilenet_v3_large", "regnet_x_400mf", "regnet_y_400mf",
            "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0",
            "squeezenet1_0", "swin_t", "vgg16_bn", "vit_b_32", "wide_resnet50_2",
            "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50",
            "fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large",
        )
    ]
)  # fmt: skip


def model_names() -> list[str]:
    """List all models: the zoo's, torchvision's classification, segmentation and detection."""
    from torchvision import models

    from nni_gconv.training.zoo import list_models

    names = [f"zoo:{n}" for n in list_models() if any(c.isdigit() for c in n)]
    for kind in (models, models.segmentation, models.detection):
        names += [f"torchvision:{n}" for n in models.list_models(module=kind)]
    return names


def build(name: str) -> tuple[Any, Any]:
    """Build a model in eval mode without downloads, and an input for it."""
    import torch
    from torchvision import models

    from nni_gconv.training.zoo import create_model

    torch.manual_seed(0)
    kind, _, bare = name.partition(":")
    side = SIDES.get(bare, 32 if kind == "zoo" else 224)
    if kind == "zoo":
        model = create_model(bare)
    else:
        options: dict[str, Any] = {"weights": None}
        detection = bare in models.list_models(module=models.detection)
        if detection or bare in models.list_models(module=models.segmentation):
            options["weights_backbone"] = None
        if bare.startswith("vit"):
            options["image_size"] = side
        model = models.get_model(bare, **options)
        model = model.backbone if detection else model
    dummy = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = model.eval()
    randomise(model, dummy)
    return model, dummy


def randomise(model: Any, dummy: Any) -> None:
    """Give norms statistics of their inputs and random scales; what is all zero, random values.

    Without it signals of an untrained network fade on their way through the layers, and any two
    networks look alike.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms(model):
            norm.weight.uniform_(0.7, 1.3, generator=generator)
            norm.bias.uniform_(-0.3, 0.5, generator=generator)
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                parameter.fill_(0.5)
            elif parameter.dim() > 1 and not bool(parameter.any()):
                parameter.normal_(std=0.05, generator=generator)
    calibrate(model, dummy, generator)


def norms(model: Any) -> list[Any]:
    """List the norms that have running statistics."""
    return [m for m in model.modules() if getattr(m, "running_mean", None) is not None]


def calibrate(model: Any, dummy: Any, generator: Any) -> None:
    """Set the statistics of norms to those of their inputs, from the first layer on."""
    import torch

    def measure(norm: Any, given: tuple[Any, ...]) -> None:
        dims = [d for d in range(given[0].dim()) if d != 1]
        norm.running_mean.copy_(given[0].mean(dims))
        norm.running_var.copy_(given[0].var(dims, unbiased=False).clamp_min(1e-2))

    handles = [norm.register_forward_pre_hook(measure) for norm in norms(model)]
    with torch.no_grad():
        model(torch.randn(2, *dummy.shape[1:], generator=generator))
    for handle in handles:
        handle.remove()


def enliven(model: Any, dummy: Any, masks: dict[str, dict[str, Any]]) -> None:
    """Give norms the statistics of the masked network where its signals fade otherwise.

    In deep networks with gates, as EfficientNets are, half of the channels leave so little that
    the outputs would not depend on the input. Where there are no norms the layers themselves are
    scaled.
    """
    import copy

    import torch

    masked = mask(copy.deepcopy(model), masks)
    with torch.no_grad():
        pairs = zip(leaves(masked(dummy)), leaves(masked(-dummy)), strict=True)
        if max(relative(a, b) for a, b in pairs) > 1e-2:
            return
    if not norms(model):
        level(model, masked, dummy)
    calibrate(masked, dummy, torch.Generator().manual_seed(0))
    for norm, other in zip(norms(model), norms(masked), strict=True):
        norm.running_mean.copy_(other.running_mean)
        norm.running_var.copy_(other.running_var)


def level(model: Any, masked: Any, dummy: Any) -> None:
    """Centre what each convolution gives in the masked network and scale it to a deviation of 1."""
    import torch

    twins = dict(model.named_modules())

    def measure(name: str) -> Any:
        def hook(layer: Any, _: Any, output: Any) -> Any:
            share = 1 / float(output.std().clamp_min(1e-6))
            shift = -float(output.mean())
            for own in (layer, twins[name]):
                own.weight.mul_(share)
                if own.bias is not None:
                    # A masked filter keeps the bias that it has.
                    own.bias.add_(shift * (layer.bias != 0)).mul_(share)
            moved = 0 if layer.bias is None else shift * (layer.bias != 0).view(-1, 1, 1)
            return (output + moved) * share

        return hook

    layers = [(n, m) for n, m in masked.named_modules() if isinstance(m, torch.nn.Conv2d)]
    handles = [layer.register_forward_hook(measure(name)) for name, layer in layers]
    with torch.no_grad():
        masked(dummy)
    for handle in handles:
        handle.remove()


def half_masks(model: Any, dummy: Any) -> dict[str, dict[str, Any]]:
    """Mask half of the channels of every coupled set, at random."""
    import numpy as np

    from nni_gconv.graph import Coupling
    from nni_gconv.pruning.selection.allocation import removal_steps

    coupling = Coupling.trace(model, dummy)
    removed = coupling.empty()
    generator = np.random.default_rng(0)
    for coupled in coupling.sets:
        if coupled.reason is None:
            for step in removal_steps(generator.random(coupled.size), blocks=coupled.parts):
                if 2 * (int(removed[coupled.classes].sum()) + len(step)) <= coupled.size:
                    removed[coupled.classes[step]] = True
    masks = coupling.masks(removed)
    return {m: {t: v.bool() for t, v in targets.items()} for m, targets in masks.items()}


def mask(model: Any, masks: dict[str, dict[str, Any]]) -> Any:
    """Set masked parameters to zero, in place."""
    import torch

    with torch.no_grad():
        for name, targets in masks.items():
            for target, kept in targets.items():
                getattr(model.get_submodule(name), target).masked_fill_(~kept, 0)
    return model


def leaves(output: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def relative(expected: Any, got: Any) -> float:
    """Return the largest difference relative to the largest value."""
    if expected.shape != got.shape:
        return float("inf")
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-300))


def difference(masked: Any, small: Any, dummy: Any) -> float:
    """Compare all outputs in float64; both models are changed."""
    import torch

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(dummy.shape, generator=generator, dtype=torch.float64)
    masked = masked.double().eval()
    with torch.no_grad():
        expected, other = leaves(masked(x)), leaves(masked(-x))
        if max(map(relative, expected, other)) < 1e-3:
            raise RuntimeError("the masked network's output does not depend on its input")
        del masked, other
        got = leaves(small.double().eval()(x))
    return max(relative(a, b) for a, b in zip(expected, got, strict=True))


def write_cache(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, the whole file or nothing of it."""
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
