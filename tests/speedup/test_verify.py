"""The comparison itself: what is run, in which precision, and what it leaves as it was."""

import copy
import threading
import weakref

import pytest
import torch
from speedup_nets import X, conv
from speedup_tools import randomise, rows_off
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nni_gconv import ModelSpeedup
from nni_gconv.errors import BudgetError, ConfigError, SpeedupError
from nni_gconv.speedup import model_speedup
from nni_gconv.speedup.cut import apply_plan
from nni_gconv.speedup.precise import PreciseModel, mask_parameters
from nni_gconv.speedup.residual import sharing_copy


class Net(nn.Module):
    """Convolutions around which variants put what needs the whole batch, or a type of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append((tuple(x.shape), x.dtype))
        return self.b(self.norm(self.a(x)).relu())


class WholeBatch(Net):
    def forward(self, x):
        return super().forward(x).reshape(6, -1, 4)


class Five(Net):
    def forward(self, x):
        return super().forward(x) * torch.arange(5, dtype=x.dtype).view(5, 1, 1, 1)


class OwnType(Net):
    def forward(self, x):
        return super().forward(x) * nn.functional.conv2d(x, torch.ones(4, 3, 3, 3))


def masks():
    weight, quiet = torch.ones(8, 3, 3, 3), torch.ones(8)
    weight[1:4] = quiet[1:4] = 0
    norm = {"weight": quiet, "bias": quiet}
    return {"a": {"weight": weight, "bias": quiet}, "norm": norm}


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        (Net, (1, 3, 8, 8), [(1, 3, 8, 8), (2, 3, 12, 12)]),
        (Net, (1, 3, 40, 40), [(1, 3, 40, 40), (2, 3, 32, 32)]),
        (Net, (64, 3, 8, 8), [(2, 3, 8, 8), (1, 3, 12, 12)]),
        (Five, (5, 3, 8, 8), [(2, 3, 8, 8), (5, 3, 8, 8), (1, 3, 12, 12)]),
        (OwnType, (1, 3, 8, 8), [(1, 3, 8, 8), torch.float32, (1, 3, 8, 8), (2, 3, 12, 12)]),
    ],
)
def test_what_is_run(monkeypatch, kind, shape, expected):
    from nni_gconv.speedup import model_speedup

    compared = []
    real = model_speedup.verify_equal

    def watched(masked, small, *args, **kwargs):
        masked.module.seen.clear()
        compared.append(masked.module.seen)
        return real(masked, small, *args, **kwargs)

    monkeypatch.setattr(model_speedup, "verify_equal", watched)
    ModelSpeedup(kind(), torch.zeros(shape), masks()).speedup_model()
    types = [torch.float64] * len(expected)
    if torch.float32 in expected:  # what stands behind it runs in that
        first = expected.index(torch.float32)
        types = [torch.float64] * first + [torch.float32] * (len(expected) - first - 1)
    shapes = [shape for shape in expected if shape is not torch.float32]
    assert compared == [list(zip(shapes, types, strict=False))]


class Live(TorchDispatchMode):
    """Counts the numbers of the results of operators that are alive."""

    now, most = 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, torch.Tensor) and x.shape[-1:] > (3,) and not operator.is_view:
                self.now += x.numel()
                self.most = max(self.most, self.now)
                weakref.finalize(x, self.gone, x.numel())
        return result

    def gone(self, numbers):
        self.now -= numbers


@pytest.mark.parametrize(
    ("most", "shapes"),
    [
        (2**27, [(2, 3, 128, 128), (1, 3, 64, 64)]),
        (400_000, [(1, 3, 128, 128), (2, 3, 64, 64)]),
        (130_000, [(1, 3, 64, 64), (2, 3, 32, 32)]),
    ],
)
def test_what_large_images_hold_is_bounded(monkeypatch, most, shapes):
    from nni_gconv.speedup import model_speedup, verify_inputs

    monkeypatch.setattr(verify_inputs, "MOST", most)
    real, compared, live = model_speedup.verify_equal, [], Live()

    def watched(masked, small, *args, **kwargs):
        masked.module.seen.clear()
        compared.append(masked.module.seen)
        with live:
            return real(masked, small, *args, **kwargs)

    monkeypatch.setattr(model_speedup, "verify_equal", watched)
    speedup = ModelSpeedup(Net(), torch.zeros(4, 3, 128, 128), masks())
    speedup.speedup_model()
    assert [shape for shape, _ in compared[0]] == shapes
    said = [n for n in speedup.report().notes if "verified on inputs of" in n]
    assert bool(said) == (most < 2**27)
    kept = 3 * shapes[0][2] ** 2 * 3  # beside it the input, and both outputs, which are compared
    assert 30_000 < live.most <= most + kept * shapes[0][0]


def test_images_whose_size_is_held_are_run_whole(monkeypatch):
    from nni_gconv.speedup import verify_inputs

    class Held(Net):
        def forward(self, x):
            assert x.shape[-1] == 64
            return super().forward(x)

    monkeypatch.setattr(verify_inputs, "MOST", 10_000)
    speedup = ModelSpeedup(Held(), torch.zeros(4, 3, 64, 64), masks())
    speedup.speedup_model()
    assert any("verified on inputs of (1, 3, 64, 64)" in n for n in speedup.report().notes)


def test_a_forward_that_holds_its_batch():
    net = WholeBatch()
    x = torch.randn(6, 3, 8, 8)
    speedup = ModelSpeedup(net, x, masks())
    assert speedup.speedup_model().a.out_channels == 5
    assert speedup.report().difference < 1e-12
    assert net(x).shape == (6, 36, 4)


def test_the_model_is_untouched_until_the_end(monkeypatch):
    """A wrong cut is found, and neither weights nor buffers of the model given have changed."""
    from nni_gconv.speedup import model_speedup

    real = model_speedup.apply_plan

    def spoiled(model, *args):
        made = real(model, *args)
        with torch.no_grad():
            model.b.weight.add_(0.01)
        return made

    net = Net().eval()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    monkeypatch.setattr(model_speedup, "apply_plan", spoiled)
    with pytest.raises(SpeedupError, match=r"they part at b \(Conv2d\)"):
        ModelSpeedup(net, torch.zeros(1, 3, 8, 8), masks()).speedup_model()
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert net.a.out_channels == 8


def test_a_mask_that_was_not_applied_is_found(monkeypatch):
    """The small model is cut from unmasked weights: its masks are the plan's to apply."""
    from nni_gconv.speedup import model_speedup

    real = model_speedup.apply_plan
    monkeypatch.setattr(model_speedup, "apply_plan", lambda m, g, p, _: real(m, g, p, {}))
    mask = torch.ones(8, 3, 3, 3)
    mask[:, 0] = 0
    with pytest.raises(SpeedupError, match=r"they part at a \(Conv2d\)"):
        ModelSpeedup(Net(), torch.zeros(1, 3, 8, 8), {"a": {"weight": mask}}).speedup_model()


def test_copies():
    net = Net()
    net.again = net.a
    net.tied = nn.Conv2d(3, 8, 3)
    net.tied.weight = net.a.weight
    net.norm.weight.requires_grad_(False)
    precise, sharing = PreciseModel(net).module, sharing_copy(net)
    for copied in (precise, sharing):
        assert copied.again is copied.a is not net.a
        assert copied.tied.weight is copied.a.weight
        assert not copied.norm.weight.requires_grad
        assert copied.norm.running_mean is not net.norm.running_mean
    assert precise.norm.num_batches_tracked.dtype == torch.int64
    assert precise.norm.num_batches_tracked is not net.norm.num_batches_tracked
    state = precise.state_dict()
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float64}
    assert all(torch.equal(state[name], t.to(state[name])) for name, t in net.state_dict().items())
    assert sharing.a.weight is net.a.weight
    assert sharing.a.bias is not net.a.bias  # a plan may add to it


def test_masked_parameters():
    net = Net()
    net.tied = nn.Conv2d(3, 8, 3)
    net.tied.weight = net.a.weight
    before = net.a.weight.detach().clone()
    kept = torch.rand(8, 3, 3, 3) > 0.5
    with torch.no_grad():
        net.a.weight[~kept] = torch.inf  # zero times infinity is no zero
    sharing = sharing_copy(net)
    mask_parameters(net, {"a.weight": kept}, {"a.weight": ("a.weight", "tied.weight")})
    assert torch.equal(net.a.weight, before * kept)
    assert net.tied.weight is net.a.weight
    assert bool(sharing.a.weight.isinf().any())


# -- what float64 does not see --------------------------------------------------------------------


def test_a_model_that_overflows_in_its_own_type_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net[1].weight[3] = 1e38
        net[2].weight[:, 3] = 10.0
    gone = {"0": {"weight": torch.ones(8, 3, 1, 1), "bias": torch.ones(8)}}
    gone["0"]["weight"][:2] = gone["0"]["bias"][:2] = 0
    before = copy.deepcopy(net.state_dict())
    message = r"output is not finite in float32; its largest parameter is 1\.weight, 1\.0e\+38"
    with pytest.raises(SpeedupError, match=message):
        ModelSpeedup(net, torch.zeros(1, 3, 8, 8), gone).speedup_model()
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    small = ModelSpeedup(net.double(), torch.zeros(1, 3, 8, 8).double(), gone).speedup_model()
    assert small[0].out_channels == 6


@pytest.mark.parametrize(
    "dummy", [torch.full((1, 3, 8, 8), torch.nan), {"x": torch.tensor(torch.nan)}]
)
def test_an_example_that_is_no_number_is_refused(dummy):
    with pytest.raises(ConfigError, match="dummy_input: holds NaN"):
        ModelSpeedup(Net(), dummy, masks())


class Noisy(Net):
    """Draws random numbers in its forward, in evaluation too."""

    def forward(self, x):
        z = super().forward(x)
        return z + torch.randn_like(z) * torch.rand(())


def test_a_forward_that_draws_random_numbers_draws_the_same():
    speedup = ModelSpeedup(Noisy(), torch.zeros(1, 3, 8, 8), masks())
    assert speedup.speedup_model().a.out_channels == 5
    assert speedup.report().difference < 1e-12


def test_what_a_trace_leaves_behind_is_seen(monkeypatch):
    """The reference is a copy made before anything has run the model."""
    from nni_gconv.speedup import model_speedup

    class Shifted(Net):
        def __init__(self):
            super().__init__()
            self.held = [torch.zeros(())]

        def forward(self, x):
            return super().forward(x) + self.held[0]

    real = model_speedup.trace

    def spoiling(model, example):
        graph = real(model, example)
        model.held[0] = torch.ones(())
        return graph

    monkeypatch.setattr(model_speedup, "trace", spoiling)
    with pytest.raises(SpeedupError, match="differs from the masked one"):
        ModelSpeedup(Shifted(), torch.zeros(1, 3, 8, 8), masks()).speedup_model()


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("verify", [True, False])
def test_a_model_that_cannot_be_copied_is_said(verify):
    message = r"^the model cannot be copied: Locked\.lock: .*lock"
    with pytest.raises(SpeedupError, match=message):
        ModelSpeedup(Locked(), torch.zeros(1, 3, 8, 8), masks(), verify=verify).speedup_model()


FREED = {
    "set": lambda y, z: z[0].set_(),
    "resize": lambda y, z: y.resize_(0),
    "storage": lambda y, z: y.untyped_storage().resize_(0),
    "data": lambda y, z: setattr(z[0], "data", torch.empty(0)),
}


@pytest.mark.parametrize(
    ("name", "left"), [("set", 16), ("resize", 16), ("storage", 8), ("data", 8)]
)
def test_a_forward_that_frees_what_it_no_longer_needs(name, left):
    """Shapes are those of the moment an operator ran; what writes to them is not followed."""

    class Freeing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.a(x)
            z = y.chunk(2, 1)
            product = z[0] * z[1]
            FREED[name](y, z)
            return self.b(product)

    weight, bias = torch.ones(16, 3, 3, 3), torch.ones(16)
    for gone in (slice(0, 4), slice(8, 12)):
        weight[gone] = bias[gone] = 0
    speedup = ModelSpeedup(
        Freeing(), torch.zeros(1, 3, 8, 8), {"a": {"weight": weight, "bias": bias}}
    )
    small = speedup.speedup_model()
    assert small.a.out_channels == left
    assert speedup.report().difference < 1e-12
    assert (left == 8) == (speedup.report().notes == ())


class _RightAtTheExample(nn.Module):
    """A layer that a cut sabotages: another batch, or another size, and it is off."""

    def __init__(self, wrong_at):
        super().__init__()
        self.wrong_at, self.off = wrong_at, False

    def forward(self, x):
        return x + 1 if self.off and self.wrong_at(x) else x


@pytest.mark.parametrize(
    ("wrong_at", "said"),
    [
        (lambda x: len(x) != 2, r"at inputs of \(1, 3, 12, 12\)"),
        (lambda x: x.shape[-1] != 8, r"at inputs of \(1, 3, 12, 12\)"),
    ],
)
def test_a_cut_that_is_wrong_at_another_size_only(monkeypatch, wrong_at, said):
    net = randomise(nn.Sequential(conv(3, 8), _RightAtTheExample(wrong_at), nn.ReLU(), conv(8, 4)))
    masks = rows_off(net, "0", [1])

    def sabotaged(model, *args):
        done = apply_plan(model, *args)
        model[1].off = True
        return done

    monkeypatch.setattr(model_speedup, "apply_plan", sabotaged)
    with pytest.raises(SpeedupError, match=said):
        ModelSpeedup(net, torch.zeros(2, 3, 8, 8, dtype=X.dtype), masks).speedup_model()


def test_a_forward_that_fixes_its_size_is_checked_at_another_batch(monkeypatch):
    body = _RightAtTheExample(lambda x: len(x) == 2)
    net = randomise(nn.Sequential(conv(3, 8), body, nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)))
    masks = rows_off(net, "0", [1])
    ModelSpeedup(copy.deepcopy(net), torch.zeros(1, 3, 8, 8, dtype=X.dtype), masks).speedup_model()

    def sabotaged(model, *args):
        done = apply_plan(model, *args)
        model[1].off = True
        return done

    monkeypatch.setattr(model_speedup, "apply_plan", sabotaged)
    with pytest.raises(SpeedupError, match=r"at inputs of \(2, 3, 8, 8\)"):
        ModelSpeedup(net, torch.zeros(1, 3, 8, 8, dtype=X.dtype), masks).speedup_model()


def test_a_budget_that_the_cut_misses_leaves_the_model_as_it_was():
    net = randomise(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)))
    masks = rows_off(net, "0", [1])
    with pytest.raises(BudgetError, match=r"budget\.params: 0\.8\d\d of dense is left"):
        ModelSpeedup(net, X, masks, budget={"params": 0.5}).speedup_model()
    assert net[0].out_channels == 8
    ModelSpeedup(net, X, masks, budget={"params": 0.9}).speedup_model()
    assert net[0].out_channels == 7
