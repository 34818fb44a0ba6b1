"""Sensitivity curves against networks that were really pruned; cache, order and mistakes."""

from __future__ import annotations

import copy
import signal

import pytest
import sensitivity_process
import torch
import yaml
from processes import run
from tiny_recipes import tiny
from torch import nn
from torch.nn import functional as F

from nni_gconv import ModelSpeedup, sensitivity
from nni_gconv.analysis.trial import _selection
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.profiling.costs import count
from nni_gconv.pruning.settings import PruneSettings, create_pruner
from nni_gconv.recipe.load import parse_recipe
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.zoo import create_model

METHODS = {"l1": "nni:L1NormPruner", "l2": "nni:L2NormPruner", "fpgm": "fpgm", "gamma": "slimming"}
EXAMPLE = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
THREE = [0.25, 0.5, 0.75]


IMAGES = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network(seed=0, name="resnet8b"):
    """A small network in float64 that gives its ten answers about equally often."""
    torch.manual_seed(seed)
    net = create_model(name, in_channels=1, width=0.5).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
        net(IMAGES)
        logits = net.eval()(IMAGES)
        net.linear.weight /= logits.std(0)[:, None]
        net.linear.bias.copy_((net.linear.bias - logits.mean(0)) / logits.std(0))
    return net


@pytest.fixture(scope="module")
def batch():
    """Images with the answers that the network gives, so that it has something to lose."""
    with torch.no_grad():
        return IMAGES, network()(IMAGES).argmax(1)


class Counting:
    """An evaluation that counts its calls, and may end in the middle."""

    def __init__(self, batch, limit=None):
        self.batch, self.limit, self.calls = batch, limit, 0

    def __call__(self, net):
        self.calls += 1
        if self.calls == self.limit:
            raise KeyboardInterrupt
        images, labels = self.batch
        assert not net.training
        assert not torch.is_grad_enabled()
        logits = net(images)
        right = (logits.argmax(1) == labels).double().mean()
        return {"accuracy": right, "loss": F.cross_entropy(logits, labels).item()}


def pruned(net, settings):
    """The small network that a recipe's prune section makes, by masks and speedup."""
    net = copy.deepcopy(net)
    pruner = create_pruner(settings, net, dummy_input=EXAMPLE)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return ModelSpeedup(net, EXAMPLE, masks).speedup_model()


@pytest.mark.slow
@pytest.mark.parametrize("criterion", METHODS)
def test_a_silenced_network_scores_what_the_really_smaller_one_does(batch, criterion):
    net = network()
    found = sensitivity(net, EXAMPLE, [batch], criterion=criterion, ratios=[0.6])
    assert len(found.curves) > 3
    assert found.dense.accuracy == 1
    for curve in found.curves:
        for point in curve.points:
            entry = {"op_names": list(curve.layers), "sparse_ratio": point.ratio}
            small = pruned(net, PruneSettings(method=METHODS[criterion], config_list=[entry]))
            score = Counting(batch)
            with torch.no_grad():
                expected = score(small)
            assert count(small, EXAMPLE).params < count(net, EXAMPLE).params
            assert point.accuracy == pytest.approx(float(expected["accuracy"]), abs=1e-12)
            assert point.loss == pytest.approx(expected["loss"], rel=1e-5)  # logits are float32


# Layers of a resnet8 belong to several sets: its shortcuts widen by zeros.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("criterion", "name"), [*((c, "resnet8b") for c in METHODS), ("fpgm", "resnet8")]
)
def test_the_prune_section_makes_the_network_that_was_measured_together(criterion, name, tmp_path):
    net = network(name=name)
    with torch.no_grad():
        batch = IMAGES, net(IMAGES).argmax(1)
    options = {"coupling": "max"}
    found = sensitivity(
        net, EXAMPLE, Counting(batch), criterion=criterion, tolerance=0.6, options=options,
        ratios=THREE,
    )  # fmt: skip
    *_, section = found.save(tmp_path)
    small = pruned(net, PruneSettings(**yaml.safe_load(section.read_text())["prune"]))
    with torch.no_grad():
        score = Counting(batch)(small)
    assert found.together.accuracy == pytest.approx(float(score["accuracy"]), abs=1e-12)
    assert found.together.loss == pytest.approx(score["loss"], rel=1e-9)
    after, before = count(small, EXAMPLE), count(net, EXAMPLE)
    assert found.together.params_ratio == pytest.approx(after.params / before.params)
    assert found.together.macs_ratio == pytest.approx(after.macs / before.macs)
    assert after.params < before.params


@pytest.mark.slow
def test_the_model_is_left_as_it_was_also_when_the_evaluation_breaks(batch):
    net = network().train()
    net.bn1.eval()
    before = copy.deepcopy(net.state_dict())
    flags = [module.training for module in net.modules()]
    parameters = list(net.parameters())
    sensitivity(net, EXAMPLE, [batch], ratios=[0.5])
    with pytest.raises(KeyboardInterrupt):
        sensitivity(net, EXAMPLE, Counting(batch, limit=5), ratios=[0.25, 0.5])
    assert [module.training for module in net.modules()] == flags
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.slow
def test_ratios_are_nested_and_equal_counts_are_measured_once(batch):
    score = Counting(batch)
    found = sensitivity(network(), EXAMPLE, score)
    points = {(i, p.removed) for i, c in enumerate(found.curves) for p in c.points if p.removed}
    assert score.calls == len(points) + 2  # dense, and all together
    for curve in found.curves:
        assert len(curve.points) == 20
        removed = [point.removed for point in curve.points]
        assert removed == sorted(removed)
        assert removed[0] == 0
        assert curve.points[0].accuracy == found.dense.accuracy
        assert removed[-1] == min(round(0.95 * curve.channels), curve.channels - 1)


def test_a_curve_ends_below_a_limit(batch):
    seen = []
    limit = 0.5
    found = sensitivity(
        network(), EXAMPLE, [batch], stop_below=limit, progress=lambda *at: seen.append(at)
    )
    short = [curve for curve in found.curves if len(curve.points) < 20]
    assert short
    for curve in short:
        assert curve.points[-1].accuracy < limit
        assert all(point.accuracy >= limit for point in curve.points[:-1])
    total = 20 * len(found.curves)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.slow
def test_random_order_depends_on_the_seed_alone(batch):
    def losses(seed):
        torch.manual_seed(seed + 5)
        found = sensitivity(
            network(), EXAMPLE, [batch], criterion="random", ratios=[0.3, 0.6], seed=seed
        )
        return [point.loss for curve in found.curves for point in curve.points]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@pytest.mark.slow
def test_the_selection_and_limits_of_a_config_list_hold(batch):
    entries = [
        {"op_types": ["Conv2d"], "sparse_ratio": 0.9, "round_to": 4, "min_channels": 3},
    ]
    found = sensitivity(network(), EXAMPLE, [batch], entries, tolerance=1.0)
    assert all(point.removed % 4 == 0 for curve in found.curves for point in curve.points)
    assert all(e["round_to"] == 4 and e["min_channels"] == 3 for e in found.config_list(1.0))
    inner = [{"op_names_re": [r"layer\d\.\d\.conv1"]}]
    found = sensitivity(network(), EXAMPLE, [batch], inner, ratios=[0.5])
    assert found.ratios() == {
        f"layer{i}.0.conv1": found.curves[i - 1].ratio(found.dense.accuracy, 0.001)
        for i in (1, 2, 3)
    }


def test_a_config_list_of_nni_2_selects_what_it_says(batch):
    old = [
        {"op_partial_names": ["conv1"], "sparsity": 0.5},
        {"op_names": ["conv1"], "exclude": True},
    ]
    found = sensitivity(network(), EXAMPLE, [batch], old, ratios=[0.5])
    assert set(found.ratios()) == {f"layer{i}.0.conv1" for i in (1, 2, 3)}


def test_a_recipe_of_nni_2_selects_what_it_says():
    stem = {"op_names": ["conv1"], "exclude": True}
    prune = {"method": "fpgm", "config_list": [{"op_types": ["Conv2d"], "sparsity": 0.5}, stem]}
    assert _selection(parse_recipe(tiny(prune=prune))) == [{"op_types": ["Conv2d"]}, stem]


@pytest.mark.slow
def test_by_default_linear_layers_are_looked_at_too(batch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)).double()
    found = sensitivity(net, EXAMPLE, [batch], ratios=[0.5])
    assert [curve.layers for curve in found.curves] == [("1",)]
    assert found.skipped == {"3": "an output of the model"}


@pytest.mark.slow
def test_the_loaders_validation_images_are_used():
    data = DataSettings(name="digits", train_size=100)
    loaders = make_loaders(load_data(data), data, seed=0, device="cpu")
    net = network().float()
    used = sensitivity(net, EXAMPLE.float(), loaders, ratios=[0.5])
    assert used == sensitivity(net, EXAMPLE.float(), loaders.val, ratios=[0.5])
    assert used != sensitivity(net, EXAMPLE.float(), loaders.test, ratios=[0.5])


# -- the file of scores --------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_the_same(batch, tmp_path):
    whole = Counting(batch)
    expected = sensitivity(network(), EXAMPLE, whole, ratios=THREE)
    with pytest.raises(KeyboardInterrupt):
        sensitivity(network(), EXAMPLE, Counting(batch, limit=8), output=tmp_path, ratios=THREE)
    rest = Counting(batch)
    found = sensitivity(network(), EXAMPLE, rest, output=tmp_path, ratios=THREE)
    assert found == expected
    # Seven scores are known; the dense one is measured again to tell whether all is as it was.
    assert rest.calls == whole.calls - 7 + 1
    again = Counting(batch)
    assert sensitivity(network(), EXAMPLE, again, output=tmp_path, ratios=[0.5]).curves
    assert again.calls == 2


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path):
    killed = run("sensitivity_process.py", tmp_path / "parts", 9)
    assert killed.code == -signal.SIGKILL, killed.said
    with (tmp_path / "parts/scores.jsonl").open("a") as file:
        file.write("[3, 1, 0.0")  # the power went in the middle of a line
    rest, whole = (sensitivity_process.run(tmp_path / folder) for folder in ("parts", "whole"))
    assert rest == whole - 8 + 1
    for name in ("scores.jsonl", "curves.csv", "prune.yml"):
        both = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "parts")]
        assert both[0] == both[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"net": network(seed=1)}, "with other weights"),
        ({"criterion": "l2"}, "with other criterion"),
        ({"config_list": [{"op_types": ["Conv2d"], "round_to": 2}]}, "other order of channels"),
        ({"options": {"coupling": "max"}}, "other order of channels"),
        ({"images": 100}, "scores of other images"),
    ],
)
def test_scores_of_something_else_are_refused(batch, tmp_path, change, words):
    call = {"net": network(), "criterion": "l1", "config_list": [{"op_types": ["Conv2d"]}]}

    def run(images=120, **settings):
        part = [(batch[0][:images], batch[1][:images])]
        net = settings.pop("net")
        sensitivity(net, EXAMPLE, part, ratios=[0.5], output=tmp_path, **settings)

    run(**call)
    kept = (tmp_path / "scores.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=words):
        run(**{**call, **change})
    assert (tmp_path / "scores.jsonl").read_bytes() == kept
    run(**call)


@pytest.mark.parametrize("text", ["nothing\n", '{"format": 1}\n', "[1]\n[2]\n"])
def test_a_damaged_file_is_refused(batch, tmp_path, text):
    (tmp_path / "scores.jsonl").write_text(text)
    with pytest.raises((CheckpointError, ConfigError), match=r"scores\.jsonl"):
        sensitivity(network(), EXAMPLE, [batch], ratios=[0.5], output=tmp_path)


def test_a_damaged_line_is_refused(batch, tmp_path):
    sensitivity(network(), EXAMPLE, [batch], ratios=[0.5], output=tmp_path)
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write("[0, 1]\n")
    with pytest.raises(CheckpointError, match="is damaged"):
        sensitivity(network(), EXAMPLE, [batch], ratios=[0.5], output=tmp_path)


def test_two_writers_at_once_are_refused(batch, tmp_path):
    def nested(net):
        sensitivity(network(), EXAMPLE, [batch], ratios=[0.5], output=tmp_path)
        return {"accuracy": 0.5, "loss": 1.0}

    with pytest.raises(ConfigError, match="another process is writing"):
        sensitivity(network(), EXAMPLE, nested, ratios=[0.5], output=tmp_path)


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"criterion": "l3"}, "unknown criterion 'l3'; did you mean"),
        ({"ratios": []}, r"ratios: \[\] is not allowed"),
        ({"ratios": [0.5, 1.5]}, "numbers from 0 to 1"),
        ({"ratios": [0.5, 0.2]}, "do not ascend"),
        ({"tolerance": 5}, "tolerance: 5 is not allowed"),
        ({"stop_below": -1}, "stop_below: -1 is not allowed"),
        ({"options": {"distanse": "l1"}, "criterion": "fpgm"}, "did you mean 'distance'"),
        ({"options": {"distance": "l1"}, "criterion": "random"}, "unknown option 'distance'"),
        ({"options": {"coupling": "union"}}, "no single order"),
        ({"config_list": [{"op_names": ["conv9"]}]}, "'conv9' matches no module"),
        ({"config_list": ["conv1"]}, "expected a mapping"),
        ({"evaluate": 3}, "expected a function of the model"),
        ({"evaluate": iter([])}, "gives its images once"),
        ({"evaluate": lambda net: 0.9}, "accuracy is NoneType"),
        ({"evaluate": lambda net: {"accuracy": 0.9}}, "loss is NoneType"),
        ({"evaluate": lambda net: {"accuracy": 91.7, "loss": 0.1}}, "91.7 is not a fraction of 1"),
    ],
)
def test_a_mistake_is_one_line(batch, change, words):
    call = {"evaluate": [batch], "config_list": None, **change}
    with pytest.raises(ConfigError, match=words) as caught:
        sensitivity(network(), EXAMPLE, call.pop("evaluate"), call.pop("config_list"), **call)
    assert "\n" not in str(caught.value)


def test_a_network_without_layers_is_refused(batch):
    with pytest.raises(ConfigError, match="no convolution and no linear layer"):
        sensitivity(nn.Flatten(), EXAMPLE, [batch])
