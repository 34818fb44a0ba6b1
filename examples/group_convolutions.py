"""Dense convolutions become group convolutions; images say which channels stand together."""

import torch
from torch import nn

from nni_gconv import shrink

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
).eval()  # fmt: skip
images = torch.randn(64, 3, 16, 16)

small, report = shrink(model, images[:1], groups=4, keep="0", calibration=images)
print(report)
groups = {row.name: row.groups for row in report.speedup.layers}
assert (groups["2"], groups["4"]) == (4, 4)

searched, report = shrink(model, images[:1], groups="search", macs=0.5, calibration=images)
print({row.name: row.groups for row in report.speedup.layers}, f"{report.macs_ratio:.2f} of MACs")
