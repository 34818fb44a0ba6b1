"""One call on networks of one's own: defaults, what it refuses, and that nothing else changes."""

import copy
import html
import json

import pytest
import torch
from pruning_nets import GroupBlock, mobile_net, plain_net
from torch import nn

from nni_gconv import (
    Calibration,
    FPGMPruner,
    SecondOrderPruner,
    load_compact,
    save_compact,
    shrink,
)
from nni_gconv.errors import BudgetError, ConfigError, UnseenError
from nni_gconv.profiling import count
from nni_gconv.pruning import method_names

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(48) % 4


def trained(net):
    """Give batch norms statistics that are not those they begin with."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net


def loop(epochs=2):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        assert model.training
        for _ in range(epochs):
            for first in range(0, 48, 16):
                optimizer.zero_grad()
                output = model(IMAGES[first : first + 16])
                nn.functional.cross_entropy(output, LABELS[first : first + 16]).backward()
                optimizer.step()

    return train


@pytest.mark.parametrize("make", [plain_net, mobile_net, GroupBlock])
@pytest.mark.parametrize("images", [None, IMAGES])
def test_three_lines_on_any_network(make, images):
    net = trained(make())
    state = copy.deepcopy(net.state_dict())
    small, report = shrink(net, X, macs=0.5, calibration=images)
    assert 0.4 < report.macs_ratio <= 0.5
    assert report.small == count(small, X)
    assert report.dense == count(net, X)
    assert report.difference < 1e-9
    assert small.training and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert report.method == ("magnitude" if images is None else "second_order")
    assert (report.reconstruction is None) == (images is None)
    shown = str(report)
    for words in (f"shrunk by {report.method}", f"{report.small.macs:,}", "kept: "):
        assert words in shown
    assert shown in html.unescape(report._repr_html_())
    assert json.loads(json.dumps(report.to_dict()))["macs_ratio"] == report.macs_ratio


@pytest.mark.slow
def test_images_keep_the_outputs_nearer():
    net = trained(plain_net()).eval()
    distances = []
    for images in (None, IMAGES):
        small, _ = shrink(net, X, macs=0.6, calibration=images)
        with torch.no_grad():
            distances.append(float((small(IMAGES) - net(IMAGES)).norm()))
    assert distances[1] < 0.5 * distances[0]


def test_a_shape_stands_for_an_input_and_counts_for_fractions():
    net = mobile_net()
    dense = count(net, X)
    _, report = shrink(net, (1, 3, 16, 16), params=dense.params // 2)
    assert report.small.params <= dense.params // 2
    assert f"{dense.params // 2:,}" in str(report)


def test_what_keep_names_keeps_its_outputs():
    net = mobile_net()
    _, report = shrink(net, X, macs=0.6, keep=["0", "12*"])
    widths = {row.name: (row.before[0], row.after[0]) for row in report.speedup.layers}
    assert (widths["0"], widths["12"]) == ((8, 8), (24, 24))
    assert widths["6"][1] < widths["6"][0] == 16
    assert report.kept["0"] == "named by keep"


@pytest.mark.slow
@pytest.mark.parametrize("images", [None, IMAGES])
def test_groups_alone_and_with_a_budget(images):
    net = trained(plain_net())
    small, report = shrink(net, X, groups=4, keep="0", calibration=images)
    assert (small[2].groups, small[0].groups) == (4, 1)
    assert report.difference < 1e-9
    assert report.method == "gconv"
    dense = count(net, X)
    both, report = shrink(net, X, groups=2, macs=0.4, calibration=images)
    assert both[2].groups == 2
    assert count(both, X).macs <= 0.4 * dense.macs
    assert both[0].out_channels < 12
    found, report = shrink(net, X, groups="search", macs=0.5)
    assert found[2].groups > 1
    assert report.macs_ratio <= 0.5
    named, _ = shrink(net, X, groups={"2": 4})
    assert named[2].groups == 4


@pytest.mark.slow
def test_methods_that_act_in_training_run_inside_the_trainer():
    net = trained(plain_net())
    small, report = shrink(net, X, macs=0.5, criterion="slimming", trainer=loop(), strength=1e-2)
    assert report.method == "slimming"
    assert not report.tuned
    assert not torch.equal(small[9].bias, net[9].bias)  # it was trained
    soft, report = shrink(
        net, X, macs=0.5, criterion=FPGMPruner, schedule="linear", trainer=loop(), epochs=2,
        steps_per_epoch=3,
    )  # fmt: skip
    assert report.method == "FPGMPruner"
    assert soft[0].out_channels < 12


def test_after_other_methods_the_small_network_is_trained():
    net = plain_net()
    seen = []

    def train(model):
        seen.append(model[0].out_channels)
        loop(1)(model)

    small, report = shrink(net, X, macs=0.5, trainer=train)
    assert report.tuned
    assert seen == [small[0].out_channels]
    assert seen[0] < 12
    assert "trained by trainer" in str(report)


def test_a_trainer_that_trains_another_model_is_told():
    net = plain_net()

    def train(model):
        model(X)  # norms' statistics move all the same
        loop(1)(net)

    small, report = shrink(net, X, macs=0.5, trainer=train)
    assert not report.tuned
    assert "trained by trainer" not in str(report)
    (note,) = [
        n for n in report.to_dict()["notes"] if n.startswith("trainer: no weight of the model")
    ]
    assert f"note: {note}" in " ".join(str(report).split())
    assert small[0].out_channels < 12


@pytest.mark.slow
def test_where_images_show_nothing_weights_choose(capsys, monkeypatch):
    def unseen(*_):
        raise UnseenError("second_order: 0 is read by no layer whose inputs can be seen")

    monkeypatch.setattr(SecondOrderPruner, "_readers", unseen)
    net = plain_net()
    small, report = shrink(net, X, macs=0.5, calibration=IMAGES, progress=True)
    assert report.method == "magnitude"
    assert report.reconstruction is not None
    assert "magnitude instead: second_order: 0 is read by no" in capsys.readouterr().err
    assert small(X).shape == (2, 4)
    with pytest.raises(UnseenError, match="second_order: 0 is read by no"):
        shrink(net, X, macs=0.5, calibration=IMAGES, criterion="second_order")


@pytest.mark.slow
def test_labels_reach_criteria_that_need_them():
    loader = [(IMAGES[:24], LABELS[:24]), (IMAGES[24:], LABELS[24:])]
    _, report = shrink(plain_net(), X, macs=0.5, criterion="taylor", calibration=loader)
    assert (report.method, report.images) == ("taylor", 48)
    _, report = shrink(plain_net(), X, macs=0.5, calibration=loader, reconstruct=False)
    assert report.reconstruction is None


def test_the_small_network_is_saved_and_loaded(tmp_path):
    small, _ = shrink(mobile_net(), X, macs=0.5)
    file = save_compact(small.eval(), tmp_path / "small.safetensors")
    with torch.no_grad():
        assert torch.equal(load_compact(file, mobile_net)(X), small(X))


class Watched:
    """A loader that must not be read."""

    def __iter__(self):
        raise AssertionError("images were read")


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, ConfigError, "how small"),
        ({"mac": 0.5}, ConfigError, "unknown argument 'mac'; did you mean 'macs'"),
        ({"macs": 0}, ConfigError, "budget.macs"),
        ({"latency": 20}, ConfigError, "budget.latency"),
        ({"macs": 1e-6}, BudgetError, "the selected layers allow macs of"),
        ({"macs": 0.5, "criterion": "slimmin"}, ConfigError, "did you mean 'slimming'"),
        ({"macs": 0.5, "criterion": 3}, ConfigError, "criterion: 3"),
        ({"macs": 0.5, "keep": ["hed"]}, ConfigError, "keep: unknown module 'hed'"),
        ({"macs": 0.5, "keep": ["1"]}, ConfigError, "no convolution"),
        ({"macs": 0.5, "keep": ["*"]}, ConfigError, "keep names every one"),
        ({"groups": 0}, ConfigError, "groups: 0"),
        ({"groups": True}, ConfigError, "groups: True"),
        ({"groups": "search"}, ConfigError, "needs a budget"),
        ({"macs": 0.5, "trainer": 3}, ConfigError, "trainer: expected a function"),
        ({"macs": 0.5, "couplin": "max"}, ConfigError, "did you mean 'coupling'"),
    ],
)
def test_what_cannot_be_is_said_before_images_are_read(asked, error, words):
    with pytest.raises(error, match=words):
        shrink(plain_net(), X, calibration=Watched(), **asked)


def test_reconstruction_needs_images():
    with pytest.raises(ConfigError, match="reconstruct: needs calibration="):
        shrink(plain_net(), X, macs=0.5, reconstruct=True)
    with pytest.raises(ConfigError, match="second_order looks at images"):
        shrink(plain_net(), X, macs=0.5, criterion="second_order")


@pytest.mark.slow
def test_every_method_is_known():
    for name in [n for n in method_names() if not n.startswith("nni:")]:
        with pytest.raises(BudgetError):
            shrink(plain_net(), X, macs=1e-6, criterion=name, calibration=IMAGES)


def test_stages_are_said(capsys):
    shrink(plain_net(), X, macs=0.5, calibration=Calibration(IMAGES), progress=True)
    lines = capsys.readouterr().err.splitlines()
    stages = [line.split()[1] for line in lines]
    assert stages == ["trace", "check", "images", "prune", "speedup"]
    assert "macs 0.5 asked" in lines[1] and "would be the least" in lines[1]
    shrink(plain_net(), X, macs=0.5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("macs", "groups", "cut"), [(0.5, None, True), (0.95, 4, False)])
def test_layers_that_lose_channels_are_those_of_the_table(capsys, macs, groups, cut):
    _, report = shrink(mobile_net(), X, macs=macs, groups=groups, progress=True)
    both = [(row.before, row.after) for row in report.speedup.layers if len(row.before) == 2]
    layers = sum(before[0] != after[0] for before, after in both)
    assert (layers > 0) is cut
    assert f"by magnitude: {layers or 'no'} layer" in capsys.readouterr().err


@pytest.mark.slow
def test_a_latency_is_measured(clock):
    _, report = shrink(mobile_net(), torch.zeros(1, 3, 16, 16), latency=0.9)
    assert clock
    assert report.latency_ratio is not None
    assert "latency" in str(report)
