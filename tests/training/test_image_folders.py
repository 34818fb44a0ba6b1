"""Folders of images in every layout people have, their sizes, and torchvision's transforms."""

import numpy as np
import pytest
import torch
from PIL import Image

from nni_gconv.errors import ConfigError, DataError
from nni_gconv.training.data import DataSettings, load_data, make_loaders

RNG = np.random.default_rng(0)


def images(root, parts, *, classes=("ant", "bee"), count=10, size=(12, 12)):
    for part in parts:
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def load(root, **options):
    return load_data(DataSettings(name="imagefolder", root=str(root), **options))


def files(data):
    return {path for path, _ in data.samples}


@pytest.mark.parametrize(
    ("parts", "sizes", "said"),
    [
        ([""], (14, 2, 4), ("(10% of pets/, held out)", "(20% of pets/, held out)")),
        (["train"], (14, 2, 4), ("(10% of train/, held out)", "(20% of train/, held out)")),
        (["train", "val"], (18, 2, 20), ("(10% of train/, held out)", "test (val/)")),
        (["train", "test"], (18, 2, 20), ("(10% of train/, held out)", "test (test/)")),
        (["train", "valid", "test"], (20, 20, 20), ("validation (valid/)", "test (test/)")),
    ],
)  # fmt: skip
def test_every_layout(tmp_path, parts, sizes, said):
    bundle = load(images(tmp_path / "pets", parts))
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == sizes
    assert all(words in bundle.description for words in said)
    found = [files(part) for part in (bundle.train, bundle.val, bundle.test)]
    assert sum(map(len, found)) == len(set.union(*found))  # none serves twice
    assert {label for _, label in bundle.test.samples} == {0, 1}


def test_held_out_test_images_do_not_depend_on_the_runs_seed(tmp_path):
    root = images(tmp_path, [""])
    settings = DataSettings(name="imagefolder", root=str(root))
    first, second = load_data(settings, seed=1), load_data(settings, seed=2)
    assert files(first.test) == files(second.test)
    assert files(first.val) != files(second.val)


@pytest.mark.parametrize("size", [(12, 12), (10, 14)])
def test_images_of_one_size_stay_as_they_are(tmp_path, size):
    bundle = load(images(tmp_path, [""], size=size))
    assert bundle.input_shape == (3, *size)
    assert "the images' own size" in bundle.description
    image, _ = bundle.test[0]
    with Image.open(bundle.test.samples[0][0]) as file:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(file))
    settings = DataSettings(name="imagefolder", root=str(tmp_path), batch_size=4, workers=0)
    loaders = make_loaders(bundle, settings, seed=0, device="cpu")
    assert next(iter(loaders.train))[0].shape == (4, 3, *size)
    plain = next(iter(loaders.plain))[0]
    gain, offset = loaders.plain.gain, loaders.plain.offset
    pixels = ((plain + offset) / gain).round()
    whole = {tuple(bundle.train[i][0].flatten().tolist()) for i in range(len(bundle.train))}
    assert tuple(pixels[0].int().flatten().tolist()) in whole


def test_images_of_several_sizes_become_224_and_it_is_said(tmp_path):
    root = images(tmp_path, [""])
    Image.new("RGB", (30, 20)).save(root / "ant" / "other.png")
    bundle = load(root)
    assert bundle.input_shape == (3, 224, 224)
    assert "several sizes" in bundle.description
    assert load(root, image_size=16).input_shape == (3, 16, 16)
    assert "(data.image_size)" in load(root, image_size=16).description


def test_transforms_by_name(tmp_path):
    root = images(tmp_path, [""])
    named = {
        "train": [{"RandomCrop": {"size": 8}}, "RandomHorizontalFlip"],
        "eval": [{"CenterCrop": {"size": 8}}],
    }
    bundle = load(root, transforms=named)
    assert bundle.input_shape == (3, 8, 8)
    with Image.open(bundle.test.samples[0][0]) as file:
        middle = np.asarray(file)[2:10, 2:10]
    assert np.array_equal(bundle.test[0][0].permute(1, 2, 0).numpy(), middle)
    same, other = bundle.train[0, 5][0], bundle.train[0, 6][0]
    assert torch.equal(same, bundle.train[0, 5][0]) and not torch.equal(same, other)


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        ({"eval": ["CentreCrop"]}, "did you mean 'CenterCrop'"),
        ({"eval": [{"CenterCrop": {"sze": 8}}]}, "eval.0: CenterCrop"),
        ({"eval": ["Normalize"]}, "data.normalize"),
        ({"eval": ["Lambda"]}, "holds no code"),
        ({"eval": [{"a": 1, "b": 2}]}, "is not allowed"),
        ({"eval": ["Grayscale"]}, "three channels"),
        ({"eval": [{"CenterCrop": {"size": 8}}], "train": ["RandomHorizontalFlip"]},
         "different sizes"),
    ],
)  # fmt: skip
def test_wrong_transforms_are_one_line(tmp_path, transforms, words):
    root = images(tmp_path, [""])
    with pytest.raises(ConfigError, match=words) as error:
        load(root, transforms=transforms)
    assert "\n" not in str(error.value)


def test_what_is_no_data_set_is_said(tmp_path):
    images(tmp_path / "pets", [""])
    with pytest.raises(DataError, match="did you mean 'pets'"):
        load(tmp_path / "pet")
    with pytest.raises(DataError, match=r"train is missing; imagefolder expects .*CLASS"):
        load(tmp_path)  # one folder only
    images(tmp_path / "odd", ["val"])
    with pytest.raises(DataError, match="train is missing"):
        load(tmp_path / "odd")
    with pytest.raises(ConfigError, match=r"data.test_fraction: 0.99 of 20 images"):
        load(tmp_path / "pets", test_fraction=0.99)
    for wrong in ({"image_size": 8}, {"augment": True}):
        with pytest.raises(ValueError, match="exclude each other"):
            load(tmp_path / "pets", transforms={"eval": []}, **wrong)
    with pytest.raises(ValueError, match="option of imagefolder"):
        DataSettings(name="digits", transforms={"eval": []})


@pytest.mark.parametrize(
    ("dtype", "file"),
    [(np.uint16, "deep.png"), (np.uint16, "deep.tif"), (np.int32, "i.tif"), (np.float32, "f.tif")],
)
@pytest.mark.parametrize("late", [False, True])
def test_pixels_of_more_than_8_bits_are_not_cut_off(tmp_path, dtype, file, late, monkeypatch):
    root = images(tmp_path, [""])
    path = root / "ant" / file
    Image.fromarray(np.full((12, 12), 300, dtype=dtype)).save(path)
    if late:  # not one of those that are looked at first
        monkeypatch.setattr("nni_gconv.training.data.load.common_size", lambda samples: (12, 12))
        bundle = load(root)
        parts = (bundle.train, bundle.val, bundle.test)
        data, i = next((p, i) for p in parts for i, s in enumerate(p.samples) if s[0] == str(path))
    with pytest.raises(DataError, match=rf"{file}: its pixels have more than 8 bits") as caught:
        data[i] if late else load(root)
    assert "\n" not in str(caught.value)


def test_an_image_that_is_too_large_is_one_line(tmp_path, monkeypatch):
    root = images(tmp_path, [""])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    with pytest.raises(DataError, match="not a readable image"):
        load(root)


def test_a_transform_meets_a_damaged_image(tmp_path):
    root = images(tmp_path, [""])
    first = min((root / "ant").iterdir())
    first.write_bytes(first.read_bytes()[:60])
    with pytest.raises(DataError, match="not a readable image"):
        load(root, transforms={"eval": ["RandomHorizontalFlip"]})


def test_numbers_are_sorted_as_text_and_it_is_said(tmp_path):
    said = "11 classes in the order of text, as torchvision has them: '10' is class 2"
    bundle = load(images(tmp_path / "a", [""], classes=[str(n) for n in range(11)], count=3))
    assert said in bundle.description
    assert bundle.class_names[:4] == ("0", "1", "10", "2")
    padded = [f"{n:02}" for n in range(11)]
    for name, classes in (("b", padded), ("c", ["0", "1", "2"]), ("d", ["1", "10", "two"])):
        bundle = load(images(tmp_path / name, [""], classes=classes, count=3))
        assert f", {len(classes)} classes, " in bundle.description
