"""A CNN and images of one's own: train, shrink with images, fine-tune, save, load."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from nni_gconv import load_compact, save_compact, shrink

pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
labels = torch.tensor(labels)
train, test = slice(0, 1400), slice(1400, None)


class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.block(x)).relu()
        return self.head(x.mean((2, 3)))


def fit(net, epochs=8, lr=0.05):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for index in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()


def accuracy(net):
    with torch.no_grad():
        return float((net.eval()(images[test]).argmax(1) == labels[test]).float().mean())


torch.manual_seed(0)
model = MyNet()
fit(model)
dense = accuracy(model)

small, report = shrink(model, images[:1], macs=0.5, calibration=images[train][:512])
print(report)
one_shot = accuracy(small)
fit(small.train(), epochs=2, lr=0.01)
print(f"accuracy: dense {dense:.3f}, small {one_shot:.3f}, tuned {accuracy(small):.3f}")

save_compact(small, "own_cnn.safetensors")
again = load_compact("own_cnn.safetensors", MyNet)
assert accuracy(again) == accuracy(small)
