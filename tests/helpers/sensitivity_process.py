"""A sensitivity analysis whose process is killed in the middle: OUTPUT, which evaluation."""

import os
import signal
import sys

import torch

from nni_gconv import sensitivity
from nni_gconv.training.zoo import create_model


def run(output, kill_at=None):
    """Measure, save, and return the number of evaluations."""
    torch.manual_seed(0)
    model = create_model("resnet8", in_channels=1, width=0.25)
    images, labels = torch.randn(40, 1, 8, 8), torch.arange(40) % 10
    calls = []

    def evaluate(network):
        calls.append(network)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        logits = network(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return {"accuracy": (logits.argmax(1) == labels).float().mean(), "loss": loss}

    sensitivity(model, images[:1], evaluate, criterion="fpgm", output=output).save(output)
    return len(calls)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
