"""torchvision's detectors, as their builders make them with trained backbones: frozen norms."""

import copy

import pytest
import torch
from speedup_tools import masked, size, zeroing_masks
from torchvision.models import ResNet, detection
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

from nni_gconv import ModelSpeedup

#: Builder, and the parts that can be followed: boxes are chosen by their values.
DETECTORS = {
    "fasterrcnn_resnet50_fpn": ("backbone", "rpn.head"),
    "maskrcnn_resnet50_fpn": ("backbone",),
    "retinanet_resnet50_fpn": ("backbone", "head"),
    "fcos_resnet50_fpn": ("backbone", "head"),
    "ssdlite320_mobilenet_v3_large": ("backbone",),
}
SIDE = 64


def detector(name, monkeypatch):
    """Build a detector with a small backbone, whose norms are those of a trained one."""
    for module in (detection.faster_rcnn, detection.retinanet, detection.fcos, detection.mask_rcnn):
        monkeypatch.setattr(
            module,
            "resnet50",
            lambda **_: ResNet(BasicBlock, [1] * 4, norm_layer=FrozenBatchNorm2d),
        )
    side = {} if name.startswith("ssd") else {"min_size": SIDE, "max_size": SIDE}
    few = {"rpn_post_nms_top_n_test": 10, "box_detections_per_img": 3} if "rcnn" in name else {}
    if "rcnn" not in name:
        few = {"score_thresh": 0.0, "detections_per_img": 5}
    build = getattr(detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=5, **side, **few)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith(("weight", "running_var")):
            buffer.data = torch.rand_like(buffer) + 0.5
    return model.eval().double()


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_finds_what_the_masked_one_finds(name, monkeypatch):
    torch.manual_seed(0)
    model = detector(name, monkeypatch)
    images = [torch.rand(3, SIDE, SIDE, dtype=torch.float64)]
    reference = copy.deepcopy(model)
    features = None
    for part in DETECTORS[name]:
        module = model.get_submodule(part)
        dummy = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64) if features is None else features
        before = size(module)
        masks = zeroing_masks(module, dummy, 0, 0.5)
        masked_part = masked(reference.get_submodule(part), masks)
        parent, _, last = part.rpartition(".")
        setattr(reference.get_submodule(parent), last, masked_part)
        with torch.no_grad():
            found = module(*(dummy if isinstance(dummy, tuple) else (dummy,)))
        ModelSpeedup(module, dummy, masks, verify=False).speedup_model()
        assert size(module) < 0.9 * before
        if features is None:
            features = (list(found.values()),)
    with torch.no_grad():
        expected, got = reference(images)[0], model(images)[0]
    assert expected.keys() == got.keys()
    assert len(expected["boxes"]) > 0
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-9, atol=1e-9)
