"""A network of timm, without its last layer's outputs changed; weights stay what they are."""

import timm
import torch

from nni_gconv import shrink

model = timm.create_model("resnet10t", num_classes=10).eval()  # pretrained=True with a network
small, report = shrink(model, torch.randn(1, 3, 64, 64), macs=0.5, keep="conv1.0")
print(report)
assert report.macs_ratio <= 0.5
