"""What is refused, in one clear line, and that a refused model is as it was."""

import collections
import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from speedup_tools import line_of, randn, randomise, rows_off, shrink
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.errors import CheckpointError, ConfigError, SpeedupError, TraceError
from nni_gconv.graph import load_masks, trace

X = randn(2, 3, 6, 6)


def net():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return randomise(model)


def good_masks(model):
    return rows_off(model, "0", [1, 2], "1")


def refused(model, masks, error=CheckpointError, dummy=X, **options):
    """Return the message, after checking that it is one line and the model untouched."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        ModelSpeedup(model, dummy, masks, **options).speedup_model()
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- masks ---------------------------------------------------------------------------------------


def test_unknown_module_names_the_nearest():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.head(self.features(x))

    message = refused(randomise(Named()), {"feature": {"weight": torch.ones(4)}})
    assert "'feature'" in message
    assert "did you mean 'features'" in message


@pytest.mark.parametrize(
    ("masks", "text"),
    [
        ({"0": {"weight": torch.zeros(4, 3, 1, 1)}}, "0.weight has shape (4, 3, 3, 3), its mask"),
        ({"0": {"weight": torch.ones(5, 3, 3, 3)}}, "0.weight has shape"),
        ({"0": {"weight": torch.full((4, 3, 3, 3), torch.nan)}}, "zeros and ones, it has nan"),
        ({"0": {"weight": torch.full((4, 3, 3, 3), 0.5)}}, "zeros and ones, it has 0.5"),
        ({"0": {"_output_0": torch.zeros(2, 4)}}, "masks of inputs, outputs"),
        ({"1": {"running_mean": torch.zeros(4)}}, "1.running_mean is not a parameter"),
        ({"0": {"wieght": torch.zeros(4)}}, "0.wieght is not a parameter"),
        ({"0": {"weight": [0, 1]}}, "0.weight must be a tensor, not list"),
        ({"0": torch.zeros(4)}, "0 must hold {target: tensor}, not Tensor"),
        ({"0.weight": torch.zeros(4)}, "0.weight is a parameter; write {'0': {'weight': mask}}"),
        ([torch.zeros(4)], "expected {module: {target: tensor}} or a file, got list"),
        (None, "got NoneType"),
    ],
)
def test_wrong_masks(masks, text):
    assert text in refused(net(), masks)


def test_what_masks_of_nni_hold_besides():
    """Masks that are None, and activation masks without effect, change nothing."""
    model = net()
    masks = good_masks(model)
    masks["0"]["_output_0"] = torch.ones(2, 4)
    masks["2"] = {"weight": None}
    masks["3"] = collections.OrderedDict(weight=torch.ones(2, 4, 1, 1, dtype=torch.bool))
    ModelSpeedup(model, X, masks).speedup_model()
    assert model[0].out_channels == 2


def test_mask_of_a_computed_weight():
    model = randomise(
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    )
    masks = {"0": {"weight": torch.zeros(4, 3, 3, 3)}}
    assert "computed weights" in refused(model, masks)


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_masks_from_a_file(tmp_path, kind):
    model = net()
    masks = good_masks(model)
    path = tmp_path / f"masks.{kind}"
    if kind == "pt":
        torch.save(masks, path)
    else:
        save_file({f"{m}.{t}": x for m, ts in masks.items() for t, x in ts.items()}, path)
    expected = net()
    ModelSpeedup(expected, X, masks).speedup_model()
    ModelSpeedup(model, X, path if kind == "pt" else str(path)).speedup_model()
    for first, second in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_defaultdict_is_refused_with_the_way_out(tmp_path):
    masks = collections.defaultdict(dict, good_masks(net()))
    torch.save(masks, tmp_path / "masks.pt")
    message = refused(net(), tmp_path / "masks.pt")
    assert "masks.pt cannot be read as masks" in message
    assert "{k: dict(v) for k, v in masks.items()}" in message


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a file of masks at all"])
def test_damaged_mask_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_masks(tmp_path / name)
    with pytest.raises(CheckpointError, match="no mask file"):
        load_masks(tmp_path / "absent.pt")


def test_file_of_something_else(tmp_path):
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds no masks"):
        load_masks(tmp_path / "weights.pt")


# -- models --------------------------------------------------------------------------------------


def test_wrapped_model():
    from nni.compression.pruning import L1NormPruner

    model = net()
    pruner = L1NormPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    with pytest.raises(SpeedupError, match="unwrap_model"):
        ModelSpeedup(model, X, masks)
    pruner.unwrap_model()
    ModelSpeedup(model, X, masks).speedup_model()
    assert model[0].out_channels == 2


def test_unknown_constants():
    with pytest.raises(ConfigError, match="'folded' is not allowed"):
        ModelSpeedup(net(), X, {}, constants="folded")


def test_report_before_the_work():
    with pytest.raises(SpeedupError, match=r"call speedup_model\(\) first"):
        ModelSpeedup(net(), X, {}).report()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        if y.sum() > 0:
            y = -y
        return y


class Raising(nn.Module):
    def forward(self, x):
        raise KeyError("the head is missing")


def test_untraceable_model_names_the_line():
    model = randomise(Branching()).train()
    message = refused(model, {}, TraceError)
    assert line_of(Branching, "if y.sum() > 0") in message
    assert "Branching" in message
    assert model.training
    assert model.conv.training
    message = refused(Raising(), {}, TraceError)
    assert line_of(Raising, "raise KeyError") in message
    assert "the head is missing" in message


def test_wrong_dummy_input_is_a_trace_error():
    assert "cannot trace Sequential" in refused(net(), {}, TraceError, dummy=randn(2, 5, 6, 6))


class TimesWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (
            nn.Conv2d(i, o, 1) for i, o in ((3, 8), (8, 6), (6, 2))
        )

    def forward(self, x):
        x = F.relu(self.first(x))
        x = self.second(x * x.shape[1])
        return self.last(F.relu(x))


def test_result_that_depends_on_the_width():
    model = randomise(TimesWidth()).train()
    flags = [m.training for m in model.modules()]
    message = refused(model, rows_off(model, "first", [0, 1]), SpeedupError)
    assert "differs from the masked one" in message
    assert "they part at second (Conv2d)" in message
    assert [m.training for m in model.modules()] == flags
    assert model.first.out_channels == 8


class WidthInTheShape(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = F.relu(self.first(x))
        return self.last(y)[:, :, : y.shape[1] // 2]


def test_shape_that_depends_on_the_width_is_seen_without_verification():
    model = randomise(WidthInTheShape())
    masks = rows_off(model, "first", [0, 1, 2, 3])
    assert "other shapes" in refused(model, masks, SpeedupError, verify=False)


def test_forward_in_float32_is_verified_in_float32():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.b(F.relu(self.a(x.float())))

    model = Casting().eval()
    masks = rows_off(model, "a", [0, 1])
    speedup = ModelSpeedup(model, X.float(), masks)
    speedup.speedup_model()
    assert 0 <= speedup.report().difference < 1e-4
    assert model.a.out_channels == 6
    assert model.a.weight.dtype == torch.float32


def test_verification_sees_a_wrong_plan(monkeypatch):
    """Sabotage: cut one channel more than is masked; verification has to stop it."""
    from nni_gconv.speedup import plan

    decide = plan.decide

    def one_too_many(graph, channels, *rest, **options):
        decision = decide(graph, channels, *rest, **options)
        rows = channels.of(channels.axes["0.weight", 0].labels)
        decision.removed[rows[3]] = True
        return decision

    monkeypatch.setattr(plan, "decide", one_too_many)
    model = net()
    message = refused(model, good_masks(model), SpeedupError)
    assert "they part at 3 (Conv2d)" in message


def test_nothing_masked_changes_nothing():
    model = net()
    before = copy.deepcopy(model.state_dict())
    shrink(model, X, {}, smaller=False)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_trace_leaves_the_model_alone():
    model = net().train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    trace(model, X)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
