"""Data sets: what is loaded, how it is split, and that batches depend on nothing but their seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from training_nets import synthetic

from nni_gconv.errors import ConfigError, DataError
from nni_gconv.training.data import (
    ArrayData,
    Augmentation,
    DataSettings,
    Normalize,
    load_data,
    make_loaders,
)
from nni_gconv.training.data.packed import decode_piece
from nni_gconv.training.data.split import stratified_split

RNG = np.random.default_rng(0)


# --- splits --------------------------------------------------------------------------------------


def test_split_is_stratified_exact_and_disjoint():
    labels = RNG.permutation(np.repeat(np.arange(5), [100, 50, 30, 15, 5]))
    rest, taken = stratified_split(labels, 40, seed=1)
    assert np.bincount(labels[taken]).tolist() == [20, 10, 6, 3, 1]
    assert sorted([*rest, *taken]) == list(range(200))
    again = stratified_split(labels, 40, seed=1)[1]
    other = stratified_split(labels, 40, seed=2)[1]
    assert np.array_equal(taken, again)
    assert not np.array_equal(taken, other)


@pytest.mark.parametrize("count", [0, 1, 7, 13, 20])
def test_split_takes_exactly_what_was_asked(count):
    rest, taken = stratified_split(RNG.integers(0, 3, 20), count, seed=0)
    assert (len(rest), len(taken)) == (20 - count, count)


# --- digits and synthetic ------------------------------------------------------------------------


def test_digits_parts_are_disjoint_and_the_test_images_never_change():
    a = load_data(DataSettings(name="digits"), seed=0)
    b = load_data(DataSettings(name="digits"), seed=1)
    assert (len(a.train), len(a.val), len(a.test)) == (1293, 144, 360)
    assert (a.input_shape, a.num_classes) == ((1, 8, 8), 10)
    assert torch.equal(a.test.images, b.test.images)
    assert not torch.equal(a.val.images, b.val.images)
    counts = torch.bincount(a.val.labels)
    assert counts.min() >= 13
    assert counts.max() <= 16
    everything = np.concatenate([part.images.numpy() for part in (a.train, a.val, a.test)])
    from sklearn.datasets import load_digits

    published = np.rint(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, -1)
    rows = sorted(map(bytes, everything.reshape(1797, -1)))
    assert rows == sorted(map(bytes, published))


def test_seed_of_the_settings_fixes_the_split_whatever_the_run():
    settings = DataSettings(name="digits", seed=5)
    assert torch.equal(load_data(settings, 0).val.images, load_data(settings, 1).val.images)


def test_size_and_channels_can_be_changed():
    bundle = load_data(DataSettings(name="digits", image_size=32, in_channels=3))
    assert bundle.input_shape == (3, 32, 32)
    assert bundle.train.images.shape[1:] == (3, 32, 32)
    assert torch.equal(bundle.train.images[:, 0], bundle.train.images[:, 2])
    small = load_data(DataSettings(name="digits")).train.images.float().mean()
    assert bundle.train.images.float().mean() == pytest.approx(float(small), rel=0.02)
    assert bundle.augmentation == Augmentation(padding=4, flip=False)


def test_colour_images_keep_their_channels(tmp_path):
    raw_arrays(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.in_channels: cifar10 has 3, not 1"):
        load_data(DataSettings(name="cifar10", root=str(tmp_path), in_channels=1))


def test_synthetic_is_deterministic_and_its_classes_differ():
    settings = DataSettings(name="synthetic", num_classes=3, in_channels=2, image_size=12)
    a, b, c = load_data(settings, 0), load_data(settings, 0), load_data(settings, 1)
    assert a.input_shape == (2, 12, 12)
    assert torch.equal(a.train.images, b.train.images)
    assert not torch.equal(a.train.images, c.train.images)
    means = [
        a.test.images[a.test.labels == k].float().mean(0).flatten() for k in range(a.num_classes)
    ]
    train = [a.train.images[a.train.labels == k].float().mean(0).flatten() for k in range(3)]
    distance = torch.cdist(torch.stack(means), torch.stack(train))
    assert distance.argmin(1).tolist() == [0, 1, 2]


def test_subsets_and_options_are_checked():
    bundle = load_data(DataSettings(name="digits", train_size=100, test_size=30))
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (90, 10, 30)
    with pytest.raises(ConfigError, match=r"data\.train_size: 9999 is more than the 1437"):
        load_data(DataSettings(name="digits", train_size=9999))
    with pytest.raises(ConfigError, match=r"data\.val_fraction"):
        load_data(DataSettings(name="digits", train_size=2, val_fraction=0.9))
    with pytest.raises(ConfigError, match=r"data\.normalize: 2 numbers for images of 1 channels"):
        load_data(DataSettings(name="digits", normalize=Normalize(mean=(0, 0), std=(1, 1))))
    with pytest.raises(ValidationError, match="num_classes is an option of synthetic"):
        DataSettings(name="digits", num_classes=3)
    with pytest.raises(ValidationError, match="std must be positive"):
        Normalize(mean=(0.0,), std=(0.0,))


# --- files ---------------------------------------------------------------------------------------


def raw_arrays(folder, shape=(32, 32, 3), classes=10):
    folder.mkdir(exist_ok=True)
    arrays = {}
    for part, count in (("train", 60), ("test", 20)):
        arrays[f"{part}_x"] = RNG.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_y"] = (np.arange(count) % classes).astype(np.uint8)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("cifar10", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
        ("fashion_mnist", (28, 28), 10),
        ("fashion_mnist", (28, 28, 1), 10),
    ],
)
def test_raw_arrays(tmp_path, name, shape, classes):
    arrays = raw_arrays(tmp_path, shape, 10)
    bundle = load_data(DataSettings(name=name, root=str(tmp_path)))
    assert bundle.num_classes == classes
    channels = shape[2] if len(shape) == 3 else 1
    assert bundle.input_shape == (channels, *shape[:2])
    expected = arrays["test_x"].reshape(20, *shape[:2], channels).transpose(0, 3, 1, 2)
    assert np.array_equal(bundle.test.images.numpy(), expected)
    assert bundle.test.labels.tolist() == arrays["test_y"].tolist()
    assert len(bundle.train) + len(bundle.val) == 60


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    raw_arrays(tmp_path / "data")
    assert len(load_data(DataSettings(name="cifar10", root="~/data")).test) == 20


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "test_y.npy").unlink(), r"test_y\.npy missing"),
        (lambda d: (d / "train_x.npy").write_bytes(b"junk"), r"train_x\.npy: not a readable"),
        (
            lambda d: np.save(d / "train_y.npy", np.full(60, 10)),
            r"labels 10 to 10, expected 0 to 9",
        ),
        (lambda d: np.save(d / "train_x.npy", np.zeros((60, 3, 32, 32), np.uint8)), r"\(N, 32, 32"),
        (lambda d: np.save(d / "test_x.npy", np.zeros((20, 32, 32, 3))), r"test_x is float64"),
        (lambda d: np.save(d / "test_y.npy", np.zeros(19, int)), r"expected integers \(20,\)"),
        (lambda d: np.save(d / "test_y.npy", np.array([{}] * 20)), r"test_y\.npy: not a readable"),
    ],
)
def test_damaged_raw_arrays_are_named(tmp_path, spoil, message):
    raw_arrays(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data(DataSettings(name="cifar10", root=str(tmp_path)))


def pack(x: np.ndarray) -> bytes:
    """The packing as its description says, written the slow way, pixel by pixel."""
    r, g, b = (x[..., c].astype(int) for c in range(3))
    planes = np.stack([g, (r - g) % 256, (b - g) % 256], 1)
    out = np.zeros_like(planes)
    for index in np.ndindex(*planes.shape):
        *image, i, j = index
        p = planes[tuple(image)]
        if i and j:
            west, north, corner = p[i, j - 1], p[i - 1, j], p[i - 1, j - 1]
            guess = sorted([west, north, west + north - corner])[1]
        else:
            guess = p[i, j - 1] if j else p[i - 1, j] if i else 0
        out[index] = (p[i, j] - guess) % 256
    return lzma.compress(out.astype(np.uint8).tobytes())


def packed_folder(folder):
    pieces, labels = [], {}
    for name, split, count in (
        ("cifar10_train_0.xz", "train", 6),
        ("cifar10_train_1.xz", "train", 5),
        ("cifar10_test_0.xz", "test", 4),
    ):
        x = RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        x[0] //= 64  # smooth parts exercise every branch of the predictor
        (folder / name).write_bytes(pack(x))
        digest = hashlib.sha256(x.tobytes()).hexdigest()
        pieces.append({"file": name, "split": split, "count": count, "sha256_pixels": digest})
        labels.setdefault(split, []).append(x)
    (folder / "cifar10.json").write_text(json.dumps({"pieces": pieces}))
    y = {split: np.arange(sum(map(len, xs))) % 10 for split, xs in labels.items()}
    np.savez(folder / "cifar10_labels.npz", **y)
    return {split: np.concatenate(xs) for split, xs in labels.items()}, pieces


def test_packed_cifar10(tmp_path):
    images, _ = packed_folder(tmp_path)
    bundle = load_data(DataSettings(name="cifar10", root=str(tmp_path)))
    assert np.array_equal(bundle.test.images.numpy(), images["test"].transpose(0, 3, 1, 2))
    both = torch.cat([bundle.train.images, bundle.val.images]).numpy().reshape(11, -1)
    wanted = images["train"].transpose(0, 3, 1, 2).reshape(11, -1)
    assert sorted(map(bytes, both)) == sorted(map(bytes, wanted))
    assert bundle.class_names[3] == "cat"


def test_damaged_packed_cifar10_is_named(tmp_path):
    _, pieces = packed_folder(tmp_path)
    index = tmp_path / "cifar10.json"
    settings = DataSettings(name="cifar10", root=str(tmp_path))

    def load_with(change):
        index.write_text(json.dumps({"pieces": [*pieces[:-1], {**pieces[-1], **change}]}))
        load_data(settings)

    with pytest.raises(DataError, match=r"cifar10_test_0\.xz: damaged: the sha256"):
        load_with({"sha256_pixels": "0" * 64})
    with pytest.raises(DataError, match=r"unpacks to less than 15360 B"):
        load_with({"count": 5})
    with pytest.raises(DataError, match="not an index"):
        load_with({"file": "../cifar10_test_0.xz"})
    index.write_text(json.dumps({"pieces": pieces}))
    (tmp_path / "cifar10_train_1.xz").write_bytes(b"\xfd7zXZ\x00 torn")
    with pytest.raises(DataError, match=r"cifar10_train_1\.xz: damaged"):
        load_data(settings)
    (tmp_path / "cifar10_train_1.xz").unlink()
    with pytest.raises(DataError, match=r"cifar10_train_1\.xz missing"):
        load_data(settings)


@pytest.mark.slow
def test_a_piece_that_unpacks_to_more_than_announced_is_refused():
    bomb = lzma.compress(bytes(50_000_000))
    with pytest.raises(ValueError, match="more than 3072 B"):
        decode_piece(bomb, 1)


def test_torchvision_layout_is_read(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {}
    for part, count in (("train", 30), ("t10k", 10)):
        pixels[part] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels[part].tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        header = np.array([2049, count], ">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels)
    bundle = load_data(DataSettings(name="fashion_mnist", root=str(tmp_path)))
    assert np.array_equal(bundle.test.images[:, 0].numpy(), pixels["t10k"])
    assert bundle.class_names[0] == "T-shirt/top"


def test_missing_data_says_what_was_expected_and_how_to_get_it(tmp_path):
    with pytest.raises(DataError) as missing:
        load_data(DataSettings(name="cifar10", root=str(tmp_path)))
    text = str(missing.value)
    assert "\n" not in text
    for word in (str(tmp_path), "cifar-10-batches-py", "train_x.npy", "cifar10.json", "download"):
        assert word in text
    assert not list(tmp_path.iterdir())  # nothing was fetched or made
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(DataError, match="incomplete or damaged"):
        load_data(DataSettings(name="cifar100", root=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"data\.root: cifar10 needs a folder"):
        load_data(DataSettings(name="cifar10"))


def test_a_failed_download_is_a_data_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", refuse)
    with pytest.raises(DataError, match=r"could not be fetched into .*no route to host"):
        load_data(DataSettings(name="cifar10", root=str(tmp_path / "new"), download=True))


# --- folders of images ---------------------------------------------------------------------------


def image_folder(root, classes=("ant", "bee"), count=6):
    for part in ("train", "val"):
        for k, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
                pixels[..., k] = 255
                Image.fromarray(pixels).save(folder / f"{i}.png")


def folder_batches(root, epoch, workers=0, **options):
    settings = DataSettings(
        name="imagefolder", root=str(root), image_size=16, batch_size=5, workers=workers, **options
    )
    loaders = make_loaders(load_data(settings), settings, seed=0, device="cpu")
    loaders.train.set_epoch(epoch)
    return list(loaders.train), list(loaders.val), list(loaders.test)


@pytest.mark.slow
def test_imagefolder_is_the_same_with_any_number_of_workers(tmp_path):
    image_folder(tmp_path)
    train0, val0, test0 = folder_batches(tmp_path, epoch=1)
    state = torch.random.get_rng_state()
    train2, _, test2 = folder_batches(tmp_path, epoch=1, workers=2)
    assert torch.equal(torch.random.get_rng_state(), state)  # the model's dropout is undisturbed
    assert len(train0) == len(train2) == 2
    for a, b in zip([*train0, *test0], [*train2, *test2], strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    other = folder_batches(tmp_path, epoch=2)[0]
    assert not torch.equal(train0[0][0], other[0][0])
    assert sum(len(y) for _, y in val0) == 1
    assert sum(len(y) for _, y in test0) == 12
    assert train0[0][0].shape == (5, 3, 16, 16)


def test_imagefolder_can_blank_and_can_stay_still(tmp_path):
    image_folder(tmp_path)
    still = folder_batches(tmp_path, epoch=0, augment=False)[0]
    blanked = folder_batches(tmp_path, epoch=0, augment=False, cutout=6)[0]
    images, blank = still[0][0], blanked[0][0]
    gone = (blank == 0).all(1)
    assert gone.flatten(1).any(1).all()
    assert torch.equal(images.movedim(1, -1)[~gone], blank.movedim(1, -1)[~gone])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(tmp_path, workers):
    image_folder(tmp_path)
    for file in (tmp_path / "train" / "bee").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^\S+bee/\d\.png: not a readable image") as error:
        folder_batches(tmp_path, epoch=0, workers=workers)
    assert "\n" not in str(error.value)


def test_imagefolder_errors(tmp_path):
    settings = DataSettings(name="imagefolder", root=str(tmp_path))
    with pytest.raises(DataError, match=r"train is missing; imagefolder expects"):
        load_data(settings)
    image_folder(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="cat"):
        load_data(settings)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match="different classes, first 'cat'"):
        load_data(settings)
    with pytest.raises(ConfigError, match="needs a folder"):
        load_data(DataSettings(name="imagefolder"))
    with pytest.raises(ConfigError, match="cannot be fetched"):
        load_data(settings.model_copy(update={"download": True}))


# --- augmentation --------------------------------------------------------------------------------


def test_crop_and_flip_equal_the_slow_way():
    images = torch.from_numpy(RNG.integers(0, 256, (20, 3, 9, 7), dtype=np.uint8))
    augmentation = Augmentation(padding=2, flip=True)
    draws = augmentation.draw(20, (9, 7), torch.Generator().manual_seed(1))
    assert draws.flip.any()
    assert not draws.flip.all()
    assert set(draws.corner.flatten().tolist()) == {0, 1, 2, 3, 4}
    result = augmentation.crop(images, draws)
    assert result.dtype == torch.uint8
    for i in range(20):
        row, col = draws.corner[i].tolist()
        padded = np.pad(images[i].numpy(), [(0, 0), (2, 2), (2, 2)])
        window = padded[:, row : row + 9, col : col + 7]
        wanted = window[:, :, ::-1] if draws.flip[i] else window
        assert np.array_equal(result[i].numpy(), wanted)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_blanks_one_square(side):
    augmentation = Augmentation(cutout=side)
    draws = augmentation.draw(50, (12, 10), torch.Generator().manual_seed(0))
    blank = augmentation.blank(torch.ones(50, 2, 12, 10), draws)
    for i, (row, col) in enumerate(draws.centre.tolist()):
        wanted = np.ones((12, 10))
        top, left = row - side // 2, col - side // 2
        wanted[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert np.array_equal(blank[i, 0].numpy(), wanted)
        assert np.array_equal(blank[i, 1].numpy(), wanted)


def test_switching_flips_does_not_change_the_crops():
    draws = [
        Augmentation(padding=3, flip=flip).draw(8, (8, 8), torch.Generator().manual_seed(0))
        for flip in (False, True)
    ]
    assert torch.equal(draws[0].corner, draws[1].corner)
    assert torch.equal(draws[0].centre, draws[1].centre)


# --- loaders -------------------------------------------------------------------------------------


def test_order_depends_on_seed_and_epoch_only():
    first, second = synthetic(), synthetic()
    list(first.train)  # a pass before leaves no trace
    for loaders in (first, second):
        loaders.train.set_epoch(4)
    torch.manual_seed(99)
    for a, b in zip(first.train, second.train, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    batches = list(first.train)
    first.train.set_epoch(5)
    assert not torch.equal(batches[0][0], next(iter(first.train))[0])


def test_every_batch_of_every_epoch_is_cropped_anew():
    settings = DataSettings(name="digits", batch_size=64)
    bundle = load_data(settings)
    alike = ArrayData(bundle.train.images[:1].repeat(128, 1, 1, 1), bundle.train.labels[:128])
    loaders = make_loaders(dataclasses.replace(bundle, train=alike), settings, seed=0, device="cpu")
    (first, _), (second, _) = loaders.train
    loaders.train.set_epoch(1)
    (third, _), _ = loaders.train
    loaders.train.set_epoch(0)
    (again, _), _ = loaders.train
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)
    assert len(torch.unique(first, dim=0)) == 9  # shifts by -1, 0, 1 both ways, no flips


def test_every_image_once_and_normalised():
    settings = DataSettings(name="digits", batch_size=100, augment=False)
    bundle = load_data(settings)
    loaders = make_loaders(bundle, settings, seed=0, device="cpu")
    assert [len(loader) for loader in (loaders.train, loaders.val, loaders.test)] == [12, 1, 2]
    images, labels = (torch.cat(parts) for parts in zip(*loaders.train, strict=True))
    assert len(images) == 1200  # the incomplete batch is left out
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.02
    assert float(images.std()) == pytest.approx(1, abs=0.02)
    images, labels = (torch.cat(parts) for parts in zip(*loaders.test, strict=True))
    mean, std = 0.3053, 0.3763
    wanted = (bundle.test.images.double() / 255 - mean) / std
    assert torch.allclose(images.double(), wanted, atol=1e-6)
    assert torch.equal(labels, bundle.test.labels)
    settings = settings.model_copy(update={"normalize": Normalize(mean=(0.0,), std=(0.5,))})
    loaders = make_loaders(load_data(settings), settings, seed=0, device="cpu")
    assert float(next(iter(loaders.test))[0].max()) == pytest.approx(2.0)


def test_a_batch_larger_than_the_data_takes_all_of_it():
    loaders = synthetic(batch_size=500)
    assert len(loaders.train) == 1
    assert len(next(iter(loaders.train))[1]) == 72


@pytest.mark.parametrize("world", [2, 3])
def test_shards_make_up_the_global_batches(world):
    alone = synthetic(batch_size=12, cutout=3)
    together = [synthetic(12 // world, rank, world, cutout=3) for rank in range(world)]
    for loaders in (alone, *together):
        loaders.train.set_epoch(2)
    for whole, *parts in zip(alone.train, *(t.train for t in together), strict=True):
        assert torch.equal(whole[0], torch.cat([images for images, _ in parts]))
        assert torch.equal(whole[1], torch.cat([labels for _, labels in parts]))
    for which in ("val", "test"):
        whole = torch.cat([images for images, _ in getattr(alone, which)])
        parts = [images for t in together for images, _ in getattr(t, which)]
        assert torch.equal(whole, torch.cat(parts))


def test_fewer_images_than_processes():
    with pytest.raises(DataError, match="training images for 100 processes"):
        synthetic(rank=0, world_size=100)
