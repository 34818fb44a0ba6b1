"""Network slimming in a training loop of one's own: the lines with a number are what it takes."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from nni_gconv import ModelSpeedup, SlimmingPruner

pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
labels = torch.tensor(labels)

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def train(net, epochs):
    for _ in range(epochs):
        for index in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()


convolutions = [{"op_types": ["Conv2d"]}]
pruner = SlimmingPruner(net, convolutions, budget={"macs": 0.5}, dummy_input=images[:1],
                        strength=3e-3)  # 1 # fmt: skip
with pruner.training(optimizer):  # 2
    train(net, epochs=12)
pruner.unwrap_model()  # 3
speedup = ModelSpeedup(net, images[:1], pruner.get_masks())  # 4
small = speedup.speedup_model()  # 5

speedup.rebind_optimizer(optimizer)  # and the same optimizer goes on with the small network
train(small, epochs=2)
print(speedup.report())
with torch.no_grad():
    right = small.eval()(images[1400:]).argmax(1) == labels[1400:]
print(f"accuracy {float(right.float().mean()):.3f}")
