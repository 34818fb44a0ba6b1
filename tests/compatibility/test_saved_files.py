"""What earlier versions saved still loads, and says the same."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nni_gconv import GroupConvPruner, ModelSpeedup, Recipe, load_compact
from nni_gconv.profiling import count
from nni_gconv.recipe.load import load_recipe
from nni_gconv.training.zoo import create_model

SAVED = Path(__file__).parent / "saved_by_0_1"
sys.path.insert(0, str(SAVED))
from nets import Residual, dummy  # noqa: E402

KINDS = ("channels", "groups", "dead_block")


@pytest.fixture(scope="module")
def outputs():
    return load_file(SAVED / "outputs.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_compact_files_of_0_1_give_the_outputs_they_gave(kind, outputs):
    small = load_compact(SAVED / f"{kind}.safetensors", Residual).eval()
    with torch.no_grad():
        assert torch.allclose(small(dummy()), outputs[kind], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_0_1_are_read_from_their_file(kind):
    dense = Residual().eval()
    before = sum(p.numel() for p in dense.parameters())
    small = ModelSpeedup(dense, dummy(), SAVED / f"{kind}_masks.pt").speedup_model()
    stored = load_compact(SAVED / f"{kind}.safetensors", Residual)
    assert {n: p.shape for n, p in small.named_parameters()} == {
        n: p.shape for n, p in stored.named_parameters()
    }
    assert sum(p.numel() for p in small.parameters()) < before


@pytest.mark.slow
def test_a_group_file_of_0_1_sets_the_counts():
    pruner = GroupConvPruner(
        Residual(),
        [{"op_types": ["Conv2d"]}],
        dummy_input=dummy(),
        group_config=SAVED / "group_config.json",
    )
    _, masks = pruner.compress()
    assert {n for n, m in masks.items() if m["weight"].mean() == 0.5} == {
        f"block{b}.conv{c}" for b in (1, 2) for c in (1, 2)
    }


def test_a_recipe_of_0_1_loads():
    recipe = load_recipe(SAVED / "recipe.yml")
    assert isinstance(recipe, Recipe)
    assert recipe.prune.budget == {"macs": 0.5}


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("files/*.safetensors")), ids=lambda f: f.stem)
def test_the_networks_kept_beside_the_results_are_those_of_the_rows(file):
    """Their accuracies are measured again by benchmarks/evaluate.py, which needs CIFAR-10."""
    rows = json.loads((RESULTS / f"{file.stem.partition('--')[0]}.json").read_text())
    written = json.loads(safe_open(file, "pt").metadata()["nni_gconv.recipe"])
    (row,) = (row for row in rows.values() if row["recipe"] == written)
    dense = create_model(written["model"]["name"])
    small = load_compact(file, lambda: create_model(written["model"]["name"]))
    image = torch.zeros(1, 3, 32, 32)
    ratio = count(small, image).macs / count(dense, image).macs
    assert ratio == pytest.approx(row["macs"], abs=1e-4)
