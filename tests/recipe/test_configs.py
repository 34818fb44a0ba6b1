"""Every recipe that is shipped loads, resolves to the published sizes, and runs on small data."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import pytest
import torch
import yaml

from nni_gconv.groupconv.search import cost_tables, score_tables, solve_tables
from nni_gconv.profiling import count
from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.pruning.methods.gconv.pruner import GroupConvPruner
from nni_gconv.recipe import run_recipe
from nni_gconv.recipe.load import load_recipe
from nni_gconv.speedup import ModelSpeedup
from nni_gconv.training.zoo.grouped import with_groups

CONFIGS = Path(__file__).parents[2] / "configs"
RESULTS = CONFIGS.parent / "benchmarks" / "results"
FILES = sorted(CONFIGS.rglob("*.yml"))
#: Parameters and MACs in millions of the published networks.
PUBLISHED = {
    "groups/imagenet-resnet34-a": (17.36, 1730),
    "groups/imagenet-resnet34-b": (9.05, 940),
    "groups/imagenet-resnet50-g2": (13.83, 2100),
    "groups/imagenet-resnet101-g2": (23.36, 3960),
}
SMALL = {"data.name": "synthetic", "data.root": None, "data.train_size": 48, "data.test_size": 16,
         "data.batch_size": 16, "data.workers": 0, "report.latency": None,
         "model.weights": None}  # fmt: skip


def name_of(path):
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_it_loads(path):
    recipe = load_recipe(path, {})
    assert recipe.prune is not None
    assert path.name in path.read_text(encoding="utf-8"), "the command in its head names it"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.yml")), ids=lambda path: path.stem)
def test_recipes_of_the_benchmark_load(path, monkeypatch):
    monkeypatch.syspath_prepend(RESULTS.parent)
    recipe_of = importlib.import_module("results").recipe_of
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, method in plan["methods"].items():
        if ":TorchPruning" in method.get("method", ""):
            continue  # not a requirement
        recipe = load_recipe(recipe_of(plan, name, 3, True, 0), {"model.weights": plan["weights"]})
        trained = recipe.sparsify.epochs if recipe.sparsify else 0
        assert trained + recipe.finetune.epochs == 3
        assert recipe.finetune.distill.features == method.get("features", 0)


def classes(recipe):
    return {"cifar10": 10, "cifar100": 100, "imagefolder": 1000, "digits": 10}[recipe.data.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    recipe = load_recipe(CONFIGS / f"{name}.yml", {})
    architecture = recipe.model.model_copy(update={"weights": None})
    side = 224 if recipe.data.name == "imagefolder" else 32
    model, image = architecture.build(num_classes=classes(recipe)), torch.zeros(1, 3, side, side)
    pruner = GroupConvPruner(
        model, list(recipe.prune.config_list), dummy_input=image, method="shuffle"
    )
    groups = dict(pruner.groups)
    pruner.unwrap_model()
    found = count(with_groups(model, groups), image)
    params, macs = PUBLISHED[name]
    assert found.params / 1e6 == pytest.approx(params, abs=0.006)
    assert found.macs / 1e6 == pytest.approx(macs, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "drop"), [(20, 0.540), (32, 0.532), (56, 0.526), (110, 0.523)])
def test_fpgm_cuts_the_macs_of_the_papers_row(depth, drop):
    """As many fewer as the paper's table says, which counts convolutions."""
    image = torch.zeros(1, 3, 32, 32)
    recipe, *others = recipes(f"fpgm/cifar10-resnet{depth}-*")
    assert all(other.prune == recipe.prune for other in others), "they share the run below"
    model = recipe.model.model_copy(update={"weights": None}).build(num_classes=10)
    dense, prune = count(model, image), recipe.prune
    pruner = FPGMPruner(model, list(prune.config_list), dummy_input=image, budget=prune.budget)
    masks = pruner.compress()[1]
    pruner.unwrap_model()
    small = ModelSpeedup(model, image, masks, verify=False).speedup_model()
    assert 1 - count(small, image).macs / dense.macs == pytest.approx(drop, abs=0.005)


#: What the references train with: files, stage, epochs, batch size, optimizer, schedule.
TRAINED = [
    ("fpgm/cifar10-resnet*", "sparsify", 200, 128,
     {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
     {"name": "multistep", "milestones": (60, 120, 160), "gamma": 0.2}),
    ("fpgm/imagenet-*", "sparsify", 100, 256,
     {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": True},
     {"name": "multistep", "milestones": (30, 60, 90), "gamma": 0.1}),
    ("gsparsity/imagenet-*", "sparsify", 90, 256,
     {"name": "ProxSGD", "lr": 1e-3, "momentum": 0.9, "normalization": "div"},
     {"name": "multistep", "milestones": (30, 60), "gamma": 0.1}),
    # The reference begins its retraining at 0.1, which throws the inherited accuracy away.
    ("gsparsity/imagenet-*", "finetune", 90, 256, {"lr": 0.01, "weight_decay": 1e-4},
     {"name": "multistep", "milestones": (30, 60), "gamma": 0.1}),
    ("gsparsity/cifar10-resnet56", "sparsify", 300, 128,
     {"name": "ProxSGD", "lr": 7.701e-4, "momentum": 0.5762}, {"name": "cosine", "min_lr": 1e-5}),
    ("gsparsity/cifar10-resnet56", "finetune", 300, 128, {"name": "Adam", "lr": 1e-3},
     {"name": "cosine", "min_lr": 0.0}),
    ("shuffle/imagenet-*", "sparsify", 60, 512, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
     {"name": "constant"}),
    ("shuffle/imagenet-*", "finetune", 120, 512, {"lr": 0.1, "weight_decay": 1e-4},
     {"name": "cosine", "warmup": 5}),
    ("shuffle/cifar10-*", "sparsify", 100, 64, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
     {"name": "constant"}),
    ("shuffle/cifar10-*", "finetune", 160, 64, {"lr": 0.1, "weight_decay": 1e-4},
     {"name": "multistep", "warmup": 10, "milestones": (80, 120), "gamma": 0.1}),
    *(
        (f"slimming/cifar*-{net}-*", stage, 160, 64,
         {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True},
         {"name": "multistep", "milestones": (80, 120), "gamma": 0.1})
        for net in ("vgg19", "preresnet164", "densenet40") for stage in ("sparsify", "finetune")
    ),
    *(
        ("slimming/cifar10-vgg16", stage, 100, 128,
         {"lr": lr, "momentum": 0.9, "weight_decay": 5e-4},
         {"name": "multistep", "milestones": (50, 70, 90), "gamma": 0.1})
        for stage, lr in (("train", 0.1), ("sparsify", 0.01), ("finetune", 0.01))
    ),
]  # fmt: skip
#: Gains, strengths and warm-ups: files, option, value.
OPTIONS = [
    ("gsparsity/imagenet-resnet50-all-conv", "gain", 0.05),
    ("gsparsity/imagenet-resnet50-*", "threshold", 1e-6),
    ("gsparsity/cifar10-resnet56", "gain", 0.01),
    ("slimming/cifar10-vgg19-*", "strength", 1e-4),
    ("slimming/cifar*-preresnet164-*", "strength", 1e-5),
    ("slimming/cifar10-densenet40-*", "strength", 1e-5),
    ("slimming/cifar10-vgg16", "strength", 1e-3),
    ("shuffle/imagenet-*", "warmup", 5),
    ("shuffle/imagenet-*", "update_every", 500),
    ("shuffle/cifar10-*", "warmup", 10),
]


def recipes(pattern):
    found = sorted(CONFIGS.glob(f"{pattern}.yml"))
    assert found
    return [load_recipe(path, {}) for path in found]


@pytest.mark.parametrize(("pattern", "stage", "epochs", "batch", "optimizer", "schedule"), TRAINED)
def test_it_trains_as_the_reference_does(pattern, stage, epochs, batch, optimizer, schedule):
    for recipe in recipes(pattern):
        settings = getattr(recipe, stage)
        assert settings.epochs == epochs
        assert recipe.data.batch_size == batch
        for wanted, given in (
            (optimizer, settings.optimizer),
            (schedule, settings.schedule),
        ):
            assert {name: getattr(given, name) for name in wanted} == wanted


@pytest.mark.parametrize(("pattern", "option", "value"), OPTIONS)
def test_it_has_the_options_of_the_reference(pattern, option, value):
    assert {recipe.prune.options[option] for recipe in recipes(pattern)} == {value}


def test_rates_of_fpgm_and_gains_of_conv12():
    for path in sorted((CONFIGS / "fpgm").glob("*-resnet*.yml")):
        rate = load_recipe(path, {}).sparsify.optimizer.lr
        assert rate == (0.01 if path.stem.endswith("pretrained") else 0.1)
    (conv12,) = recipes("gsparsity/imagenet-resnet50-conv12")
    assert [entry["gain"] for entry in conv12.prune.config_list] == [0.05, 0.1]


@pytest.fixture(scope="module")
def searched():
    """The network of the recipe that searches, and its choices: the same for any budget."""
    (recipe,) = recipes("groups/cifar100-preresnet164-searched")
    model, image = recipe.model.build(num_classes=100), torch.zeros(1, 3, 32, 32)
    costs = cost_tables(model, image, list(recipe.prune.config_list))
    return recipe, model, image, score_tables(costs, model)


def used(model, groups, image):
    return count(with_groups(copy.deepcopy(model), groups), image).params


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1.6e6, 0.91e6, 0.4e6, 0.2e6])
def test_searched_budgets_are_kept(searched, budget):
    recipe, model, image, tables = searched
    chosen = solve_tables(tables, {"params": budget}, score="geometric", fill=0.99).chosen
    options = zip(tables.layers, chosen, strict=True)
    groups = {layer.name: layer.choices[option] for layer, option in options}
    assert 0.99 * budget <= used(model, groups, image) <= budget
    if budget == recipe.prune.budget["params"]:
        pruner = GroupConvPruner(
            copy.deepcopy(model),
            list(recipe.prune.config_list),
            dummy_input=image,
            budget=recipe.prune.budget,
            restarts=0,
        )
        assert dict(pruner.groups) == {name: g for name, g in groups.items() if g > 1}


#: Networks with fewer or narrower blocks of the same kinds; the whole ones are built, and some
#: counted, above.
SHORT = {
    "torchvision:resnet18": {"model.name": "short_nets:basic"},
    "torchvision:resnet34": {"model.name": "short_nets:basic"},
    "torchvision:resnet50": {"model.name": "short_nets:bottlenecks"},
    "torchvision:resnet101": {"model.name": "short_nets:bottlenecks"},
    "torchvision:densenet201": {"model.name": "short_nets:dense"},
    "resnet20": {"model.options.width": 0.5},
    "resnet32": {"model.name": "resnet20", "model.options.width": 0.5},
    "resnet56": {"model.name": "resnet20", "model.options.width": 0.5},
    "resnet110": {"model.name": "resnet20", "model.options.width": 0.5},
    "preresnet164": {"model.name": "preresnet", "model.options.depth": 20},
    "vgg16": {"model.options.width": 0.625},  # a recipe asks for up to 256 of its 512 filters
    "vgg19": {"model.options.width": 0.25},
    "condensenet86": {"model.name": "condensenet", "model.options.stages": [2, 2, 2]},
    "densenet40": {"model.name": "densenet", "model.options.depth": 13},
}


def quick(recipe):
    """Overrides for a run of seconds: small images by chance, no epochs but one that prunes."""
    overrides = {**SMALL, "data.num_classes": classes(recipe), "train.epochs": 0}
    overrides["data.image_size"] = 32
    if recipe.model.name in SHORT:
        overrides |= SHORT[recipe.model.name]
        if recipe.prune.budget is not None:  # it may count the whole network's
            overrides["prune.budget"] = {"params": 0.6}
    if recipe.finetune is not None:
        overrides["finetune.epochs"] = 0
        overrides["finetune.distill"] = None
    if recipe.sparsify is not None:
        overrides["sparsify.epochs"] = 1
    if recipe.prune.method == "gconv":  # they better a partition, and take most of the time
        overrides["prune.options.restarts"] = 0
    if "warmup" in recipe.prune.options:
        overrides["prune.options.warmup"] = 0
    return overrides


#: One of each network.
SAME = ("-a", "-g4", "-g8", "-mcpg32", "-pretrained", "cifar100-preresnet164-60")
RUN = [p for p in FILES if not p.stem.endswith(SAME)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a recipe; those that only differ in how deep their network was are run once."""
    done = {}

    def run_quickly(path, recipe):
        overrides = quick(recipe)
        asked = load_recipe(path, overrides).model_dump_json(exclude={"name"})
        if asked not in done:
            folder = tmp_path_factory.mktemp("run")
            done[asked] = run_recipe(path, overrides=overrides, output=folder, quiet=True), folder
        return done[asked]

    return run_quickly


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_it_runs_on_small_data(path, run):
    recipe = load_recipe(path, {})
    result, folder = run(path, recipe)
    # Three steps kill no filter, and without a budget nothing else goes.
    unharmed = recipe.prune.method == "gsparsity" and recipe.prune.budget is None
    assert result.metrics["params_ratio"] == 1 if unharmed else result.metrics["params_ratio"] < 1
    assert (folder / "compact.safetensors").is_file()
