"""Images in other numbers than the model's: taken, or refused in one line, whoever looks."""

import copy

import pytest
import torch
from pruning_nets import plain_net, randomised
from torch.utils.data import DataLoader, TensorDataset

from nni_gconv import FPGMPruner, SecondOrderPruner, reconstruct
from nni_gconv.errors import DataError
from nni_gconv.pruning.calibration import Calibration, layer_covariances
from nni_gconv.pruning.criteria import ActivationPruner, TaylorPruner

HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def covariances(model, images):
    return layer_covariances(model, images, ["0"])["0"]


def chosen(kind):
    def masks_of(model, images):
        labelled = Calibration([(images, torch.arange(len(images)) % 2)], progress=False)
        pruner = kind(model, HALF, dummy_input=IMAGES[:1], calibration=labelled)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        return torch.cat([of["weight"].flatten() for of in masks.values()])

    return masks_of


def refitted(model, images):
    pruner = FPGMPruner(model, HALF, dummy_input=IMAGES[:1])
    _, masks = pruner.compress()
    pruner.unwrap_model()
    reconstruct(model, masks, images)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


LOOKS = {
    "covariances": covariances,
    "second order": chosen(SecondOrderPruner),
    "activation": chosen(ActivationPruner),
    "taylor": chosen(TaylorPruner),
    "reconstruct": refitted,
}


@pytest.fixture(params=LOOKS)
def look(request):
    return LOOKS[request.param]


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_other_floats_are_taken_as_the_model_s(look, kind):
    model = randomised(plain_net()).eval()
    given = IMAGES.to(kind)
    expected = look(copy.deepcopy(model), given.float())
    assert torch.equal(look(model, given), expected)


def test_bytes_are_refused_with_what_to_give(look):
    model = randomised(plain_net()).eval()
    images = IMAGES.mul(40).add(128).clamp(0, 255).byte()
    with pytest.raises(DataError) as caught:
        look(model, images)
    said = str(caught.value)
    assert "calibration: the model does not run on images of shape (3, 8, 8)" in said
    assert "images are torch.uint8, the model torch.float32: give images.to(torch.float32)" in said


def test_a_network_that_takes_bytes_gets_them(look):
    class Bytes(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x.float() / 255)

    model = Bytes(*randomised(plain_net()).eval()).eval()
    images = IMAGES.mul(40).add(128).clamp(0, 255).byte()
    look(model, images)


def loader_of(labels, **options):
    labels = torch.as_tensor(labels)
    images = torch.randn(len(labels), 3, 4, 4)
    return DataLoader(TensorDataset(images, labels), batch_size=16, **options)


SORTED = torch.arange(10).repeat_interleave(20)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (SORTED, 4),  # as folders of images are read
        (torch.zeros(80, dtype=torch.int64), 1),
        (SORTED.view(10, 20).flip(0).flatten(), 4),
    ],
)
@pytest.mark.parametrize("images", [64, 70])
def test_the_first_images_of_a_sorted_loader_are_refused(labels, classes, images):
    with pytest.raises(DataError, match=rf"{images} images come class by class, {classes} in all"):
        Calibration(loader_of(labels), images=images)


@pytest.mark.parametrize(
    "loader",
    [
        loader_of(SORTED, shuffle=True, generator=torch.Generator().manual_seed(0)),
        loader_of(SORTED[:64]),  # all there are: their order says nothing
        loader_of(torch.arange(200) % 10),
        loader_of(torch.linspace(0, 1, 200)),  # no classes
        loader_of(torch.zeros(200, 2, dtype=torch.int64)),
        loader_of((torch.arange(200) == 50).long()),  # one of two classes is rare
        [x for x, _ in loader_of(SORTED)],
    ],
)
def test_other_orders_are_taken(loader):
    assert len(Calibration(loader, images=64)) == 64


def test_of_few_images_the_order_may_be_chance():
    assert len(Calibration(loader_of(torch.zeros(200, dtype=torch.int64)), images=31)) == 31
