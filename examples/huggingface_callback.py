"""Network slimming in the Hugging Face Trainer: one callback, and the model is small."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

from nni_gconv.callbacks.huggingface import PruningCallback


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
data = [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, labels, strict=True)]

model = Classifier()
callback = PruningCallback("slimming", {"macs": 0.5}, {"pixel_values": images[:1]}, strength=1e-3)
arguments = TrainingArguments(
    "runs/huggingface", num_train_epochs=4, per_device_train_batch_size=64, learning_rate=1e-2,
    report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
)  # fmt: skip
Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
print(callback.report)
assert model.net[0].out_channels < 32
