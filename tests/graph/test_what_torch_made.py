"""Inputs and modules that are not what a network is: each works, or is one line."""

from __future__ import annotations

import warnings

import pytest
import torch
from pruner_cases import GROUP_PRUNERS, PRUNERS
from torch import nn

from nni_gconv import FPGMPruner, ModelSpeedup
from nni_gconv.diagnose import diagnose
from nni_gconv.errors import ConfigError, NniGconvError
from nni_gconv.profiling import count

X = torch.zeros(1, 3, 16, 16)
HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
CONVS = [{"op_types": ["Conv2d"]}]


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def masks_of(prefix=""):
    mask = torch.ones(8, 3, 3, 3)
    mask[:2] = 0
    return {f"{prefix}0": {"weight": mask}}


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


def exported():
    return torch.export.export(net().eval(), (X,))


ENTRIES = {
    "pruner": lambda model, x: FPGMPruner(model, HALF, dummy_input=x),
    "budget": lambda model, x: FPGMPruner(model, CONVS, dummy_input=x, budget={"macs": 0.5}),
    "speedup": lambda model, x: ModelSpeedup(model, x, masks_of()).speedup_model(),
    "diagnose": diagnose,
    "count": count,
}


def said_by(entry, model, x):
    with pytest.raises(NniGconvError) as caught:
        ENTRIES[entry](model, x)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_empty_batch(entry):
    assert "dummy_input: the batch is empty" in said_by(entry, net(), torch.zeros(0, 3, 16, 16))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.uint8),  # images as they are read from files
    ],
)
def test_a_model_and_an_input_of_two_types(entry, kind, given):
    said = said_by(entry, net().to(kind), X.to(given))
    assert f"dummy_input is {given}, the model {kind}: give dummy_input.to({kind})" in said


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_shape_in_place_of_an_input(entry):
    said = said_by(entry, net(), (1, 3, 16, 16))
    shape = "dummy_input is a shape, not a tensor: give torch.randn(1, 3, 16, 16)"
    assert shape in said or "dummy_input: holds no tensor; give a tensor" in said


def test_a_model_and_an_input_of_one_type_work():
    model = net().bfloat16()
    pruner = FPGMPruner(model, HALF, dummy_input=X.bfloat16())
    _, masks = pruner.compress()
    pruner.unwrap_model()
    small = ModelSpeedup(model, X.bfloat16(), masks).speedup_model()
    assert (small[0].out_channels, small[0].weight.dtype) == (4, torch.bfloat16)


@pytest.mark.parametrize("entry", ["pruner", "budget", "speedup"])
@pytest.mark.parametrize("form", ["module", "program"])
def test_what_comes_from_export(entry, form):
    program = exported()
    said = said_by(entry, program.module() if form == "module" else program, X)
    assert "torch.export, which leaves no layers to prune; prune the module it was" in said


@pytest.mark.parametrize("entry", ["pruner", "budget", "speedup"])
@pytest.mark.parametrize("form", ["script", "trace"])
def test_a_script_module(entry, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(net()) if form == "script" else torch.jit.trace(net(), X)
    assert "is a ScriptModule, whose layers cannot be changed" in said_by(entry, made, X)


def test_a_graph_of_fx_is_a_network():
    model = torch.fx.symbolic_trace(net())
    small = ModelSpeedup(model, X, masks_of()).speedup_model()
    assert small(X).shape == (1, 4, 12, 12)


class Holder(nn.Module):
    """A network with a ScriptModule inside, which it runs or does not."""

    def __init__(self, runs):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.runs = net(), runs
        self.scripted = scripted(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))

    def forward(self, x):
        y = self.net(x)
        return self.scripted(y) if self.runs else y


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PRUNERS, *sorted(set(GROUP_PRUNERS) - {"gconv-shaping"})])
@pytest.mark.parametrize("runs", [True, False])
def test_a_script_module_inside(name, runs):
    model = Holder(runs).eval()
    before = model(X + 1)
    kind = {**PRUNERS, **GROUP_PRUNERS}[name]
    goal = {"num_groups": 2} if name in GROUP_PRUNERS else {"sparse_ratio": 0.5}
    options = {"schedule": "one-shot"} if name in GROUP_PRUNERS else {}
    pruner = kind(model, [{"op_types": ["Conv2d"], **goal}], dummy_input=X, **options)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    assert torch.equal(model(X + 1), before)
    assert all(p.dim() for p in model.scripted.parameters())
    speedup = ModelSpeedup(model, X, masks)
    speedup.speedup_model()
    assert speedup.report().difference < 1e-9
    assert model(X).shape == (1, 4, 12, 12)
    if name in PRUNERS:
        assert model.net[0].out_channels == 4
        assert model.net[3].out_channels == 4  # an output, or what the ScriptModule reads


def test_steps_alone_with_a_schedule_that_was_asked_for_are_one_line():
    from nni_evaluator import evaluator

    model = net()
    pruner = FPGMPruner(model, HALF, evaluator(model, 2), dummy_input=X, schedule="linear")
    with pytest.raises(ConfigError, match=r"schedule linear: give compress\(\) max_epochs"):
        pruner.compress(max_steps=3)
