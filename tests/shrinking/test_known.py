"""What is said of calibration images that do not look as those of the training."""

import pytest
import torch
from pruning_nets import plain_net
from torch import nn

from nni_gconv import Calibration, shrink
from nni_gconv.shrinking.known import images_known

NET = nn.Sequential(nn.Flatten(), nn.Linear(8, 4, bias=False)).eval()
with torch.no_grad():
    NET[1].weight.copy_(torch.eye(4, 8))
LABELS = torch.arange(320) % 4
IMAGES = nn.functional.one_hot(LABELS, 8).float()[:, :, None, None]


def said(labels, images=IMAGES, net=NET):
    return images_known(net, Calibration([(images, labels)], progress=False))


def test_the_share_of_the_first_images_that_is_right():
    assert said(LABELS) == (", the network is right on 100 % of 256", "")
    half = torch.where(torch.arange(320) % 8 < 4, LABELS, (LABELS + 1) % 4)
    assert said(half) == (", the network is right on 50 % of 256", "")


def test_no_better_than_chance_is_a_note():
    known, odd = said(LABELS.roll(1))
    assert known == ", the network is right on 0 % of 256"
    assert odd.startswith("calibration: the network is right on 0 of 256 images, no better than")
    assert "\n" not in odd
    some = torch.Generator().manual_seed(0)
    assert said(torch.randint(4, (320,), generator=some))[1]


@pytest.mark.parametrize(
    ("labels", "images", "net"),
    [
        (LABELS.float(), IMAGES, NET),  # numbers, no classes
        (LABELS[:, None], IMAGES, NET),
        (LABELS + 1, IMAGES, NET),  # more than the network tells apart
        (LABELS - 1, IMAGES, NET),
        (LABELS, IMAGES, nn.Identity()),  # maps
        (LABELS, IMAGES[:, :3], NET),  # of another size: said where they are used
    ],
)
def test_labels_that_say_nothing(labels, images, net):
    assert said(labels, images, net) == ("", "")


def test_of_one_class_alone_chance_is_not_known():
    assert said(torch.ones_like(LABELS)) == (", the network is right on 25 % of 256", "")


def test_the_note_is_in_the_report():
    torch.manual_seed(0)
    net = plain_net().eval()
    images = torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        right = net(images).argmax(1)
        classes = net(images).shape[1]
    wrong = (right + 1 + torch.arange(64) % (classes - 1)) % classes
    for labels, notes in ((right, 0), (wrong, 1)):
        _, report = shrink(net, images[:1], macs=0.5, calibration=[(images, labels)])
        found = [n for n in report.to_dict()["notes"] if "no better than chance" in n]
        assert len(found) == notes
        assert ("no better than chance" in " ".join(str(report).split())) == bool(notes)
