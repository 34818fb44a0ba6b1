"""Recipes that look at calibration images: second-order choice, reconstruction, resume."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipes import tiny

from nni_gconv import Recipe, run_recipe
from nni_gconv.errors import ConfigError
from nni_gconv.pruning.calibration import moments
from nni_gconv.training.data import DataSettings, load_data, make_loaders

CALIBRATED = {"budget": {"macs": 0.6}, "calibration": {"images": 64, "batch_size": 32}}


def one_shot(**prune):
    return tiny(prune={**CALIBRATED, **prune}, finetune=None)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    return run_recipe(Recipe(**one_shot()), output=folder / "a", quiet=True), folder


@pytest.mark.slow
def test_calibration_alone_means_second_order_and_reconstruction(calibrated):
    result, _ = calibrated
    assert result.method == "second_order"
    done = result.stages["prune"]["reconstruction"]
    assert done["images"] == 64
    assert done["error"] <= done["without"]
    assert 0.55 < result.metrics["macs_ratio"] <= 0.6


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_network(calibrated):
    _, folder = calibrated
    run_recipe(Recipe(**one_shot()), output=folder / "b", quiet=True)
    first, second = (load_file(folder / x / "compact.safetensors") for x in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_what_was_done_stands_in_the_trials_folder(calibrated):
    result, folder = calibrated
    stages = json.loads((folder / "a" / "stages.json").read_text(encoding="utf-8"))
    assert result.stages["prune"]["reconstruction"]["refitted"] in (True, False)
    assert "prune" in json.dumps(stages)


@pytest.mark.slow
def test_trials_share_statistics_and_keep_none_of_their_own(calibrated, tmp_path, monkeypatch):
    _, folder = calibrated
    assert not (folder / "a" / "calibration").exists()
    gathered = []
    gather = moments._Pass.gather
    monkeypatch.setattr(moments._Pass, "gather", lambda self: gathered.append(1) or gather(self))
    share = {"calibration": {**CALIBRATED["calibration"], "share": str(tmp_path / "shared")}}
    for name, macs in (("one", 0.6), ("two", 0.5)):
        recipe = Recipe(**one_shot(**share, budget={"macs": macs}))
        run_recipe(recipe, output=tmp_path / name, quiet=True)
    assert len(gathered) == 1
    first, second = (load_file(f / "compact.safetensors") for f in (folder / "a", tmp_path / "one"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_stage_that_is_cut_short_finds_its_statistics_again(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("nni_gconv.pruning.criteria.second_order.eliminate", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(Recipe(**one_shot()), output=tmp_path / "run", quiet=True)
    assert len(list((tmp_path / "run" / "calibration").glob("moments-*.safetensors"))) == 1
    monkeypatch.setattr(moments._Pass, "gather", stopped)
    run_recipe(Recipe(**one_shot()), output=tmp_path / "run", quiet=True, resume=True)
    assert not (tmp_path / "run" / "calibration").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "prune",
    [
        {"method": "fpgm", "reconstruct": True},
        {"method": "gconv", "reconstruct": {"ridge": 0.01, "recalibrate_bn": False}},
        {"method": "second_order", "reconstruct": False, "allocation": "uniform"},
        {"method": "nni:L1NormPruner", "reconstruct": True},
    ],
)
def test_every_method_can_be_reconstructed(prune, tmp_path):
    result = run_recipe(Recipe(**one_shot(**prune)), output=tmp_path / "run", quiet=True)
    assert ("reconstruction" in result.stages["prune"]) == bool(prune["reconstruct"])


@pytest.mark.parametrize(
    ("prune", "words"),
    [
        ({"budget": {"macs": 0.5}}, r"prune\.method: is missing"),
        (
            {"method": "fpgm", "budget": {"macs": 0.5}, "reconstruct": True},
            r"needs prune\.calibration",
        ),
        ({**CALIBRATED, "method": "fpgm", "allocation": "error"}, "allocation"),
        ({**CALIBRATED, "calibration": {"images": 1}}, "images"),
        ({**CALIBRATED, "reconstruct": {"rigde": 0.1}}, "rigde"),
    ],
)
def test_what_does_not_fit_is_said_when_the_recipe_is_read(prune, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        Recipe(**tiny(prune=prune))


def test_calibration_images_are_of_the_training_split_and_not_cropped():
    settings = DataSettings(name="digits", train_size=160, test_size=40, batch_size=32)
    bundle = load_data(settings, seed=0)
    loaders = make_loaders(bundle, settings, seed=0, device="cpu")
    images, labels = next(iter(loaders.plain))
    again, _ = next(iter(loaders.plain))
    assert torch.equal(images, again)
    mean, std = (
        torch.tensor(v).view(-1, 1, 1) for v in (bundle.normalize.mean, bundle.normalize.std)
    )
    pixels = ((images * std + mean) * 255).round().to(torch.uint8)
    known = {
        x.numpy().tobytes(): int(y)
        for x, y in zip(bundle.train.images, bundle.train.labels, strict=True)
    }
    assert all(known[x.numpy().tobytes()] == int(y) for x, y in zip(pixels, labels, strict=True))


@pytest.mark.parametrize("batch_size", [32, 50, 500])
def test_every_image_of_the_training_split_may_calibrate(batch_size):
    settings = DataSettings(name="digits", train_size=160, test_size=40, batch_size=batch_size)
    bundle = load_data(settings, seed=0)
    loaders = make_loaders(bundle, settings, seed=0, device="cpu")
    assert sum(len(images) for images, _ in loaders.plain) == len(bundle.train)
    assert len(loaders.plain) == -(-len(bundle.train) // batch_size)
