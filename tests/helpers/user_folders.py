"""A user's folder: a network in a module, images by class, weights."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=3, width=8):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""


def user_folder(folder, module):
    """Write ``MODULE.py``, ``images/CLASS/*.png`` of 12x12 and ``w.pt`` into a folder."""
    (folder / f"{module}.py").write_text(NET)
    rng = np.random.default_rng(0)
    for k, name in enumerate(("red", "green", "blue")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 120, (12, 12, 3), dtype=np.uint8)
            pixels[..., k] += 100
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    names: dict[str, object] = {}
    exec(NET, names)
    torch.manual_seed(0)
    net = names["Net"]()
    torch.save(net.state_dict(), folder / "w.pt")
    return net
