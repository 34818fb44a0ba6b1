"""optimize(): the same numbers, whatever was measured; no test rests on what is quick here."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn

from nni_gconv import (
    GroupConvPruner,
    ModelSpeedup,
    ShufflePruner,
    compat,
    load_compact,
    save_compact,
)
from nni_gconv.errors import CheckpointError, ConfigError, SpeedupError
from nni_gconv.groupconv import gathers_of, wrap_gathers
from nni_gconv.groupconv.forms import Form, find_units, forms_of, in_form
from nni_gconv.inference import (
    FormPlan,
    LayerForm,
    Optimized,
    apply_forms,
    fold_batch_norms,
    judge,
    mark_optimized,
    optimize,
    origin_of,
    report_of,
    search,
    work_of,
)
from nni_gconv.inference.chain import cheapest_path
from nni_gconv.inference.check import check_equal
from nni_gconv.inference.norms import foldable_norms
from nni_gconv.profiling.latency import _summary
from nni_gconv.training.zoo import create_model

X = torch.zeros(2, 3, 8, 8)
QUICK = {"max_seconds": 0.0}


class Net(nn.Module):
    """A residual block of group convolutions, a depthwise layer, one that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 1, groups=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        x = (x + y).relu()
        return self.fc(self.depthwise(self.depthwise(x)).mean((2, 3)))


def net():
    torch.manual_seed(0)
    made = Net().eval()
    for norm in (made.bn1, made.bn2):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
    return made


def test_the_same_numbers_and_the_model_as_it_was():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    fast = optimize(model, X, **QUICK)
    report = report_of(fast)
    assert report.difference < 1e-9
    assert model.training
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fast.parameters())
    assert report.networks[0].name == "as it was"
    assert report.taken.ratio <= 1
    assert [row.name for row in report.layers] == ["stem", "conv1", "conv2", "depthwise"]
    assert report.measured["batch"] == 2
    names = {n.name for n in report.networks}
    assert {"dense, contiguous", "dense, channels last"} <= names  # what groups must beat
    for word in ("conv1", "channels last", "as it was"):
        assert word in "\n".join(report.lines()) + str([r.name for r in report.layers])


def test_every_plan_gives_the_same_numbers():
    """Random forms, memory formats and conversions, layer by layer."""
    model = net()
    folded = FormPlan(folded={"bn1": "conv1", "bn2": "conv2"})
    units = find_units(apply_forms(model, folded), X)
    assert [u.calls for u in units] == [1, 1, 1, 2]
    draw = random.Random(0)
    for number in range(12):
        layers = {
            u.name: LayerForm(
                draw.choice(forms_of(u.module)), draw.random() < 0.5, draw.random() < 0.5
            )
            for u in units
        }
        for last in (False, True):
            tried = FormPlan(layers, folded.folded if number % 2 else {}, last)
            fast = apply_forms(model, tried)
            assert check_equal(model, fast, lambda m, p=tried: apply_forms(m, p), X) < 1e-9
            assert FormPlan.from_dict(tried.to_dict()) == tried


def test_a_wrong_form_is_found():
    model = net()
    fast = apply_forms(model, FormPlan())
    with torch.no_grad():
        fast.stem.weight.mul_(1.01)
    with pytest.raises(SpeedupError, match="differs by"):
        check_equal(model, fast, lambda m: m, X)


def test_networks_without_grouped_layers_and_without_forms():
    report = report_of(optimize(nn.Sequential(nn.Conv2d(3, 4, 3)), X, **QUICK))
    assert report.groups_paid is None
    assert not any("dense" in n.name for n in report.networks)
    fast = optimize(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), X, **QUICK)
    assert report_of(fast).layers == ()


def test_the_dense_network_is_timed_beside():
    report = report_of(optimize(net(), X, dense=net(), **QUICK))
    assert {n.name for n in report.networks} >= {
        "given dense network, contiguous",
        "given dense network, channels last",
    }
    assert not report.chosen.startswith("given")


def test_mistakes():
    with pytest.raises(ConfigError, match="target"):
        optimize(net(), X, target="size")
    with pytest.raises(ConfigError, match="optimize"):
        report_of(net())


def test_norms_go_through_permutations():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.conv(x))

    block = Block().eval().double()
    nn.init.normal_(block.bn.running_mean)
    nn.init.normal_(block.bn.weight)
    wrap_gathers(block, "conv", None, [2, 0, 3, 1])
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    folded = fold_batch_norms(block, x)
    assert isinstance(folded.bn, nn.Identity)
    assert torch.allclose(folded(x), block(x), atol=1e-12)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(3, 4, 1)])
def test_scales_near_zero_leave_no_weights_that_processors_are_slow_at(layer):
    x, norm = torch.randn(2, 3, 5, 5), nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.weight[1] = 1e-38
        norm.bias[1] = 0.5
        denormal = torch.nn.utils.fusion.fuse_conv_bn_eval(
            layer.eval(), norm, transpose=isinstance(layer, nn.ConvTranspose2d)
        )
        small = (denormal.weight != 0) & (denormal.weight.abs() < torch.finfo(torch.float32).tiny)
        assert small.any()
        fused = fold_batch_norms(nn.Sequential(layer, norm), x)[0]
        assert torch.equal(fused.weight, denormal.weight.masked_fill(small, 0))
        assert torch.equal(fused(x), denormal(x))


def test_small_weights_of_other_types_stay():
    """Half precision holds numbers that float32 has as normal ones, float64 smaller ones."""
    for dtype, scale in ((torch.float16, 1e-5), (torch.float64, 1e-40)):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(dtype).eval()
        nn.init.constant_(net[0].weight, 1.0)
        nn.init.constant_(net[1].weight, scale)
        folded = fold_batch_norms(net, torch.zeros(1, 3, 5, 5, dtype=dtype))
        assert folded[0].weight.all()


def test_cheapest_path_against_all_paths():
    draw = random.Random(1)
    for _ in range(50):
        steps = draw.randint(1, 6)
        costs = [(draw.random(), draw.random()) for _ in range(steps)]
        changes = [draw.random() for _ in range(steps)]

        def cost(path, costs=costs, changes=changes):
            before = (0, *path[:-1])
            rows = zip(before, path, costs, changes, strict=True)
            return sum(cost[now] + change * (old != now) for old, now, cost, change in rows)

        best = min(map(cost, itertools.product((0, 1), repeat=steps)))
        assert cost(tuple(cheapest_path(costs, changes))) == pytest.approx(best)


# -- files ---------------------------------------------------------------------------------------


def saved(tmp_path, plan):
    model = net()
    fast = mark_optimized(apply_forms(model, plan), Optimized(model, plan))
    return model, fast, save_compact(fast, tmp_path / "m.safetensors")


PLAN = FormPlan(
    {"conv1": LayerForm(Form("plain", 1)), "conv2": LayerForm(Form("matmul", 2), True, True)},
    {"bn1": "conv1"},
    True,
    {"batch": 2},
)


def test_a_file_holds_grouped_weights_and_rebuilds_the_forms(tmp_path):
    model, fast, file = saved(tmp_path, PLAN)
    x = torch.randn(2, 3, 8, 8)
    loaded = load_compact(file, Net)
    assert torch.equal(loaded(x), fast(x))
    assert loaded.conv1.groups == 1
    assert isinstance(loaded.bn1, nn.Identity)
    assert origin_of(loaded).plan == PLAN
    plain = load_compact(file, Net, optimized=False)
    assert torch.equal(plain(x), model(x))
    assert plain.conv1.groups == 4
    again = save_compact(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == file.read_bytes()


def test_a_form_of_a_later_version_leaves_the_layer_as_it_is(tmp_path, monkeypatch):
    _, fast, file = saved(tmp_path, PLAN)
    monkeypatch.setattr("nni_gconv.groupconv.forms.form.KINDS", ("plain",))
    loaded = load_compact(file, Net)
    assert isinstance(loaded.conv2, nn.Conv2d)
    assert loaded.conv2.groups == 2
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(loaded(x), fast(x), atol=1e-5)


def test_what_was_changed_since_is_not_written(tmp_path):
    _, fast, _ = saved(tmp_path, PLAN)
    with torch.no_grad():
        fast.fc.weight.add_(1)
    with pytest.raises(CheckpointError, match="changed since optimize"):
        save_compact(fast, tmp_path / "other.safetensors")


def test_a_copied_model_with_gathers_is_written_too(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    wrap_gathers(model, "0", [1, 0, 3, 2], None)
    file = save_compact(copy.deepcopy(model), tmp_path / "m.safetensors")
    loaded = load_compact(file, lambda: nn.Sequential(nn.Conv2d(4, 4, 3)))
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(loaded(x), model(x))


# -- the judge, with a clock that is told ----------------------------------------------------------


def judged(monkeypatch, *looks):
    """Let whole networks take these times, look by look; one that is not named takes 20 ms."""
    seen = []

    def compare(models, *_, **__):
        told = {"as it was": 10.0, **looks[len(seen)]}
        times = {n: [told.get(n, 20.0) + noise for noise in NOISE] for n in models}
        seen.append(list(models))
        return _summary(models, times, {"batch_size": 2, "threads": 1, "channels_last": False})

    monkeypatch.setattr(judge, "compare_latency", compare)
    fast = optimize(net(), X, **QUICK)
    return fast, report_of(fast), seen


NOISE = (0.0, 0.01, -0.01, 0.02, -0.02)


def test_dense_layers_are_taken_where_they_are_quicker(monkeypatch):
    fast, report, seen = judged(monkeypatch, *2 * [{"dense, contiguous": 5.0}])
    assert seen[1] == ["as it was", "dense, contiguous"]
    assert (report.chosen, report.groups_paid) == ("dense, contiguous", False)
    assert (fast.conv1.groups, fast.conv2.groups, fast.depthwise.groups) == (1, 1, 8)
    assert isinstance(fast.bn1, nn.Identity)
    assert "groups do not pay here: their layers are computed as dense ones" in report.lines()
    assert report.taken.milliseconds == pytest.approx(5.0)


def test_groups_are_kept_where_they_are_quicker(monkeypatch):
    fast, report, seen = judged(monkeypatch, *2 * [{"norms folded, contiguous": 9.0}])
    assert seen[1] == ["as it was", "dense, contiguous", "norms folded, contiguous"]
    assert report.groups_paid
    assert (fast.conv1.groups, fast.conv2.groups) == (4, 2)
    assert isinstance(fast.bn1, nn.Identity)


def test_a_network_that_nothing_makes_quicker_stays_as_it_was(monkeypatch):
    fast, report, _ = judged(monkeypatch, *2 * [{"norms folded, contiguous": 10.1}])
    assert report.chosen == "as it was"
    assert isinstance(fast.bn1, nn.BatchNorm2d)
    assert torch.equal(fast(X), net()(X))
    assert "nothing was quicker than the network as it was" in report.lines()


def test_what_was_lucky_once_is_not_taken(monkeypatch):
    """A fresh look decides against the network that is dense throughout."""
    dense, folded = "dense, channels last", "norms folded, contiguous"
    looks = [{dense: 8.1, folded: 8.0}, {dense: 8.0, folded: 8.0}]
    _, report, seen = judged(monkeypatch, *looks)
    assert seen[1] == ["as it was", dense, folded]
    assert (report.chosen, report.groups_paid) == (dense, False)
    assert report.taken.milliseconds == pytest.approx(8.0)
    _, report, _ = judged(monkeypatch, looks[0], {dense: 8.0, folded: 7.9})
    assert (report.chosen, report.groups_paid) == (folded, True)
    _, report, _ = judged(monkeypatch, looks[0], {dense: 10.1, folded: 10.0})
    assert report.chosen == "as it was"


def test_the_dense_network_to_beat_has_the_memory_format_that_is_asked_for(monkeypatch):
    model, base = net(), FormPlan()
    plans = {"as it was": base, "a": FormPlan(channels_last=True), "b": FormPlan({}, {}, False)}
    found = []
    monkeypatch.setattr(
        search.Judge, "choose", lambda _, plans, plain, dense: found.append(plain) or ((), "a")
    )
    monkeypatch.setattr(search, "_candidates", lambda *_: plans)
    monkeypatch.setattr(search, "_plan", lambda _, __, choose, last: plans["ba"[last]])
    monkeypatch.setattr(search, "_report", lambda *_: None)
    for last, name in ((True, ["a"]), (False, ["as it was", "b"])):
        search.find_forms(model, X, max_seconds=0, channels_last=last)
        assert found.pop() == name


# -- networks of the same work -------------------------------------------------------------------


def converted(pruner):
    """A narrow network with gathers and groups, as a trial converts it, and the dense one."""
    torch.manual_seed(0)
    model = create_model("resnet8", num_classes=10, in_channels=1, width=0.25)
    x = torch.zeros(2, 1, 8, 8)
    dense = copy.deepcopy(model).eval()
    made = pruner(model, [{"op_types": ["Conv2d"]}], budget={"macs": 0.6}, dummy_input=x)
    _, masks = made.compress()
    made.unwrap_model()
    return ModelSpeedup(model, x, masks).speedup_model().eval(), dense, x


@pytest.mark.slow
@pytest.mark.parametrize("pruner", [ShufflePruner, GroupConvPruner])
def test_as_dense_layers_a_converted_network_runs_what_the_dense_one_runs(pruner):
    """No gather, no other operator: so it takes exactly its time."""
    small, dense, x = converted(pruner)
    assert any(gathers_of(module) for module in small.modules())
    norms, dense_norms = foldable_norms(small, x), foldable_norms(dense, x)
    units = find_units(small, x)
    for last in (False, True):
        forms = {u.name: LayerForm(Form("plain", 1), last) for u in units}
        fast = work_of(apply_forms(small, FormPlan(forms, norms, last)), x)
        assert fast == work_of(apply_forms(dense, FormPlan({}, dense_norms, last)), x)
        assert len(fast) < len(work_of(apply_forms(small, FormPlan({}, norms, last)), x))
    assert work_of(small, x) != work_of(dense, x)


def test_work_knows_shapes_groups_formats_packing_and_batches():
    def conv(*given, **more):
        return nn.Conv2d(4, *given, **more)

    def work(layer, batch=2):
        return work_of(layer, torch.zeros(batch, 4, 6, 6))

    plain = work(conv(8, 3))
    assert plain == work(conv(8, 3))
    others = [conv(6, 3), conv(8, 1), conv(8, 3, groups=2), conv(8, 3, padding=1)]
    others.append(conv(8, 3).to(memory_format=torch.channels_last))
    others += [conv(8, 3, bias=False), nn.Sequential(conv(8, 3), nn.ReLU())]
    if compat.packs_convolutions():
        others.append(in_form(conv(8, 3), Form("packed", 1)))
    assert plain not in map(work, others)
    assert plain != work(conv(8, 3), 1)
