"""What is masked can be cut: silent channels, widths in a forward, gates, frozen norms."""

import re

import pytest
import torch
import torchvision
from mask_tools import alive, seeded
from pruning_nets import conv, randomised
from short_nets import SHORT_NETS
from torch import nn

from nni_gconv import FPGMPruner, ModelSpeedup, SlimmingPruner
from nni_gconv.diagnose import diagnose
from nni_gconv.errors import BudgetError, ConfigError
from nni_gconv.profiling import count
from nni_gconv.training.zoo import create_model

X = torch.zeros(1, 3, 8, 8)
CONVS = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]


def trained(net):
    """Numbers as of a trained network, in norms of every kind."""
    if not any(isinstance(m, nn.BatchNorm2d) and not m.affine for m in net.modules()):
        randomised(net)
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point() and "running" not in name:
            buffer.data = torch.rand_like(buffer) + 0.5
    return net


def pruned(net, config, dummy=X, make=FPGMPruner, **options):
    """Masks, a small network, and that it gives what the masked one gives while it is wrapped."""
    net = trained(net)
    pruner = make(net, config, dummy_input=dummy, **options)
    wrapped, masks = pruner.compress()
    images = torch.randn(2, *dummy.shape[1:])
    with torch.no_grad():
        expected = wrapped.eval()(images)
    pruner.unwrap_model()
    speedup = ModelSpeedup(net, dummy, masks)
    small = speedup.speedup_model()
    with torch.no_grad():
        torch.testing.assert_close(small(images), expected, rtol=1e-3, atol=1e-4)
    assert not [note for note in speedup.report().notes if "stay" in note]
    return pruner, small


# -- widths in a forward ---------------------------------------------------------------------------


class Attention(nn.Module):
    """Ten lines: a size is read off what goes in and asked of what comes out."""

    def __init__(self):
        super().__init__()
        self.pre, self.qkv = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1)
        self.proj = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        x = self.pre(x).relu()
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).view(b, 2, 16, h * w).split([4, 4, 8], dim=2)
        y = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return self.proj(y.view(b, c, h, w))


class Sized(nn.Module):
    """The width of `pre` is asked of what `q` makes: both lose the same channels."""

    def __init__(self):
        super().__init__()
        self.pre, self.q, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x):
        x = self.pre(x).relu()
        b, c, h, w = x.shape
        return self.head(self.q(x).view(b, c, h * w).transpose(1, 2))


class HeadsBehind(nn.Module):
    """torch's own attention has its width written in a module."""

    def __init__(self):
        super().__init__()
        self.free, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.a = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        y = self.c(self.free(x).relu()).flatten(2).transpose(1, 2)
        return self.a(y, y, y)[0]


class Checked(nn.Module):
    """The forward refuses any other width."""

    def __init__(self):
        super().__init__()
        self.free, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        y = self.c(self.free(x).relu())
        if y.shape[1] != 16:
            raise ValueError("sixteen channels")
        return self.head(y)


def test_a_size_of_another_tensor_is_to_blame_and_nothing_is_masked_for_nothing():
    with pytest.raises(
        ConfigError, match=r"nothing can be pruned: pre: a (size of another|width is)"
    ):
        FPGMPruner(Attention(), CONVS, dummy_input=X)


def test_layers_tied_by_a_size_lose_the_same_channels():
    pruner, small = pruned(Sized(), CONVS)
    assert pruner.skipped == {}
    assert (small.pre.out_channels, small.q.out_channels, small.head.in_features) == (8, 8, 8)


def test_attention_of_torch_keeps_the_layer_in_front_of_it():
    pruner, small = pruned(HeadsBehind(), CONVS)
    assert list(pruner.skipped) == ["c"]
    assert "a width is written in the forward, met at" in pruner.skipped["c"]
    assert (small.free.out_channels, small.c.out_channels) == (4, 16)


def test_a_forward_that_checks_its_width():
    pruner = FPGMPruner(Checked(), CONVS, dummy_input=X)
    assert "c" in pruner.skipped
    masks = pruner.compress()[1]
    assert "c" not in masks or bool(alive(masks["c"]["weight"]).all())
    assert alive(masks["free"]["weight"]).sum() == 4


class Neck(nn.Module):
    """Features of two levels flattened, one behind the other, for a linear layer, as in DETR."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, 1)
        self.one, self.two, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x):
        x = self.a(x).relu()
        y = self.two(self.b(x).relu())
        return self.head(torch.cat([self.one(x).flatten(2), y.flatten(2)], 2).transpose(1, 2))


@pytest.mark.parametrize("size", [7, 8])
def test_a_neck_of_two_levels(size):
    dummy = torch.zeros(1, 3, size, size)
    config = [{"op_types": ["Conv2d", "Linear"]}]
    dense = count(net := Neck(), dummy)
    pruner, small = pruned(net, config, dummy, budget={"params": 0.6})
    assert pruner.skipped == {"head": "an output of the model"}
    assert 0.58 < count(small, dummy).params / dense.params <= 0.6


def test_masks_that_cannot_be_cut_to_the_budget_are_an_error():
    class Forgetful(FPGMPruner):
        def masks_of(self, removed, metrics):
            masks = super().masks_of(removed, metrics)
            masks["two"]["weight"][:] = 1
            return masks

    pruner = Forgetful(Neck(), [{"op_types": ["Conv2d"]}], dummy_input=X, budget={"params": 0.6})
    with pytest.raises(BudgetError, match=r"budget\.params: 0\.\d+ of dense is left"):
        pruner.compress()


# -- layers of a class of one's own ----------------------------------------------------------------


class Same(nn.Conv2d):
    """Padded as it goes, as timm's Conv2dSame."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed, as timm's StdConv2d."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def test_op_types_are_of_subclasses_too():
    net = nn.Sequential(Same(3, 8, 3), nn.ReLU(), Same(8, 6, 3), nn.ReLU(), conv(6, 4))
    pruner, small = pruned(net, CONVS)
    assert pruner.skipped == {"4": "an output of the model"}
    assert (small[0].out_channels, small[2].out_channels) == (4, 3)
    with pytest.raises(ConfigError, match="select no module"):
        FPGMPruner(net, [{**CONVS[0], "exclude_op_types": ["Conv2d"]}], dummy_input=X)
    only = [{"op_types": ["Conv2d"], "exclude_op_types": ["Same"], "sparse_ratio": 0.5}]
    with pytest.raises(ConfigError, match="4: an output of the model"):
        FPGMPruner(net, only, dummy_input=X)


def test_what_is_selected_and_kept_is_listed_with_its_reason():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = conv(3, 8), Standardised(8, 8, 3, padding=1), conv(8, 4)
            self.spare, self.first = conv(3, 8), conv(3, 3)

        def forward(self, x):
            return self.head(self.b(self.a(self.first(x).relu()).relu()).relu())

    skipped = FPGMPruner(Net(), CONVS, dummy_input=X).skipped
    assert skipped["spare"] == "it is not used by the forward"
    assert set(skipped) >= {"a", "spare", "head"}


@pytest.mark.slow
def test_a_video_network_of_subclasses():
    net = torchvision.models.video.r3d_18()
    config = [{"op_types": ["Conv3d"], "sparse_ratio": 0.5}]
    dummy = torch.zeros(1, 3, 4, 32, 32)
    assert FPGMPruner(net, config, dummy_input=dummy).skipped == {}


# -- gates -----------------------------------------------------------------------------------------


class Gated(nn.Module):
    """Squeeze and excitation; `added`: what the linear layers make is added instead."""

    def __init__(self, bias=True, added=False):
        super().__init__()
        self.c, self.norm, self.added = conv(3, 16, bias=False), nn.BatchNorm2d(16), added
        self.down, self.up = nn.Linear(16, 4, bias=bias), nn.Linear(4, 16, bias=bias)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.norm(self.c(x)).relu()
        gate = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        return self.head(x + gate if self.added else x * gate)


@pytest.mark.parametrize("bias", [True, False])
def test_a_gate_that_is_not_selected_follows(bias):
    pruner, small = pruned(Gated(bias), CONVS)
    assert pruner.skipped == {"head": "an output of the model"}
    assert (small.c.out_channels, small.up.out_features, small.down.in_features) == (8, 8, 8)


def test_a_sum_is_no_gate_and_the_reason_ends_in_the_remedy():
    why = r"coupled to up, which .* \(add Linear to op_types, or couple: true\)"
    with pytest.raises(ConfigError, match=why):
        FPGMPruner(Gated(added=True), CONVS, dummy_input=X)


def test_couple_selects_what_is_tied():
    config = [{"op_names": ["c"], "sparse_ratio": 0.5, "couple": True, "min_channels": 5}]
    pruner, small = pruned(Gated(added=True), config)
    assert list(pruner.layers) == ["c", "up"]
    assert pruner.layers["up"].min_channels == 5
    assert (small.c.out_channels, small.up.out_features, small.down.out_features) == (8, 8, 4)
    config[0]["couple"] = False
    with pytest.raises(ConfigError, match="coupled to up"):
        FPGMPruner(Gated(added=True), config, dummy_input=X)


def test_couple_leaves_out_what_is_excluded_and_what_has_settings_of_its_own():
    config = [
        {"op_types": ["Conv2d"], "exclude_op_names": ["up"], "sparse_ratio": 0.5, "couple": True}
    ]
    with pytest.raises(ConfigError, match="coupled to up, which the config_list excludes"):
        FPGMPruner(Gated(added=True), config, dummy_input=X)
    config = [
        {"op_names": ["c"], "sparse_ratio": 0.5, "couple": True},
        {"op_names": ["up"], "sparse_ratio": 0.25},
    ]
    pruner, small = pruned(Gated(added=True), config)
    assert (pruner.layers["up"].sparse_ratio, pruner.layers["up"].couple) == (0.25, False)
    assert small.c.out_channels == 12


def test_couple_is_true_or_false():
    config = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5, "couple": "all"}]
    with pytest.raises(ConfigError, match=r"config_list\[0\].*couple"):
        FPGMPruner(Gated(), config, dummy_input=X)


def test_a_gate_that_is_excluded_holds():
    config = [{"op_types": ["Conv2d", "Linear"], "exclude_op_names": ["up"], "sparse_ratio": 0.5}]
    skipped = FPGMPruner(Gated(), config, dummy_input=X).skipped
    assert skipped["c"] == "its channels are coupled to up, which the config_list excludes"


# -- constants -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "between", [nn.Sigmoid, nn.Softplus, lambda: nn.BatchNorm2d(8, affine=False)]
)
def test_a_constant_that_the_next_bias_takes_does_not_hold_a_channel(between):
    net = nn.Sequential(conv(3, 8), between(), nn.Conv2d(8, 6, 1), nn.ReLU(), conv(6, 4))
    pruner, small = pruned(net, CONVS)
    assert pruner.skipped == {"4": "an output of the model"}
    assert (small[0].out_channels, small[2].in_channels) == (4, 4)


# -- frozen norms ----------------------------------------------------------------------------------


class Frozen(nn.Module):
    """A frozen norm as users write it, with names and a shape of their own."""

    names = ("scale", "shift", "mean", "var")
    flat = True

    def __init__(self, width):
        super().__init__()
        for name in self.names:
            self.register_buffer(name, torch.ones(width if self.flat else (1, width, 1, 1)))

    def forward(self, x):
        scale, shift, mean, var = (getattr(self, name) for name in self.names)
        if not self.flat:
            return (x - mean) / (var + 1e-5).sqrt() * scale + shift
        scale = scale * (var + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (shift - mean * scale).reshape(1, -1, 1, 1)


class Usual(Frozen):
    names = ("weight", "bias", "running_mean", "running_var")


class Shaped(Frozen):
    flat = False


class Functional(Usual):
    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        return nn.functional.batch_norm(x, mean, var, self.weight, self.bias)


class Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.an = conv(3, 16, bias=False), norm(16)
        self.b, self.bn = conv(16, 16, bias=False), norm(16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.an(self.a(x)).relu()
        return self.head((x + self.bn(self.b(x))).relu())


@pytest.mark.parametrize(
    "norm", [torchvision.ops.FrozenBatchNorm2d, Frozen, Usual, Shaped, Functional]
)
@pytest.mark.parametrize("make", [FPGMPruner, SlimmingPruner])
def test_frozen_norms_are_silenced(norm, make):
    net = Residual(norm)
    pruner, small = pruned(net, CONVS, make=make)
    assert pruner.skipped == {"head": "an output of the model"}
    assert (small.a.out_channels, small.b.out_channels) == (8, 8)


def test_unwrapping_gives_frozen_norms_back_as_they_were():
    net = randomised(Residual(torchvision.ops.FrozenBatchNorm2d))
    before = {name: b.clone() for name, b in net.named_buffers()}
    pruner = FPGMPruner(net, CONVS, dummy_input=X)
    pruner.compress()
    net(torch.randn(2, 3, 8, 8))
    pruner.unwrap_model()
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


@pytest.mark.slow
def test_a_resnet_with_frozen_norms_is_pruned_as_one_with_trained_norms():
    dummy = torch.zeros(1, 3, 32, 32)
    resnet, widths = torchvision.models.resnet, []
    for norm in (torchvision.ops.FrozenBatchNorm2d, nn.BatchNorm2d):
        net = seeded(
            lambda norm=norm: resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1], norm_layer=norm)
        )
        pruner, small = pruned(net, CONVS, dummy)
        assert pruner.skipped == {}
        widths.append([m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)])
    assert widths[0] == widths[1]
    assert widths[0][0] == 32


# -- the dry run says what the pruner does ---------------------------------------------------------


class Various(nn.Module):
    """Layers that stay, each for another reason: one is not used, one computes its weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = conv(3, 8), Standardised(8, 8, 3, padding=1), conv(8, 8)
        self.c, self.d = conv(8, 6), nn.ConvTranspose2d(6, 6, 1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.c(self.b(self.a(x).relu()).relu())
        x = nn.functional.layer_norm(x.movedim(1, 3), (6,)).movedim(3, 1)
        return self.head(self.d(x) * x.mean(1, keepdim=True))


#: What needs no line of a forward to be understood.
_PLAIN = r"an output of|a single channel|an input of|not used by|the config_list|coupled to|groups"

SMALL_NETS = {
    "various": Various,
    **{f"zoo:{n}": lambda n=n: create_model(n) for n in ("resnet8", "preresnet11", "densenet10")},
    **{
        f"zoo:{n}:{k}": lambda n=n, k=k: create_model(n, shortcut=k)
        for n in ("resnet8", "resnet14")
        for k in "AB"
    },
    "vgg11": lambda: create_model("vgg11", width=0.25),
    **{c.__name__: c for c in (Sized, HeadsBehind, Checked, Attention, Neck, Gated)},
    "sum with a linear layer": lambda: Gated(added=True),
    **{
        f"residual {n.__name__}": lambda n=n: Residual(n)
        for n in (torchvision.ops.FrozenBatchNorm2d, Frozen, Shaped, Functional, nn.BatchNorm2d)
    },
    **{
        f"between {a.__name__}": lambda a=a: nn.Sequential(
            conv(3, 8), a(), conv(8, 8, 1), nn.ReLU(), conv(8, 4)
        )
        for a in (nn.Sigmoid, nn.Softplus, nn.SiLU, nn.GELU, nn.Hardsigmoid, nn.Tanh, nn.ELU)
    },
    **{
        f"padded {a.__name__}": lambda a=a: nn.Sequential(
            conv(3, 8), a(), conv(8, 8), nn.ReLU(), conv(8, 4)
        )
        for a in (nn.Sigmoid, nn.Softplus, nn.Hardsigmoid)
    },
}
TORCHVISION = (
    "resnet18 resnext50_32x4d mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 "
    "squeezenet1_1 regnet_y_400mf regnet_x_400mf efficientnet_b0 googlenet densenet121 "
    "convnext_tiny"
).split()


def agree(net, dummy):
    """Compare what the dry run finds with what a pruner of all layers does."""
    found = diagnose(net, dummy, ratio=0.5)
    layers_ = nn.Conv2d | nn.Linear | nn.ConvTranspose2d
    kinds = {type(m).__name__ for m in net.modules() if isinstance(m, layers_)}
    config = [{"op_types": sorted(kinds), "sparse_ratio": 0.5}]
    layers = {n for n, m in net.named_modules() if type(m).__name__ in kinds}
    stay = {name for row in found.sets if row.reason is not None for name in row.layers} & layers
    free = {name for row in found.sets if row.reason is None for name in row.layers}
    try:
        pruner = FPGMPruner(net, config, dummy_input=dummy)
    except ConfigError as error:
        assert not free, error
        return
    assert set(pruner.skipped) == stay
    assert stay | free == layers
    for name, reason in pruner.skipped.items():
        assert re.search(rf"at \S+:\d+|{_PLAIN}|constant that \S+ reads", reason), (name, reason)
        assert reason in {row.reason for row in found.sets if name in row.layers}
    assert {m.module for s in pruner.sets for m in s.members} == free
    dense = count(net, dummy)
    masks = pruner.compress()[1]
    pruner.unwrap_model()
    small = count(ModelSpeedup(net, dummy, masks).speedup_model(), dummy)
    assert small.params / dense.params == pytest.approx(found.params_ratio, abs=1e-12)
    assert small.macs / dense.macs == pytest.approx(found.macs_ratio, abs=1e-12)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_the_dry_run_is_the_pruner(name):
    size = 32 if name.startswith(("zoo", "vgg")) else 8
    agree(trained(seeded(SMALL_NETS[name])), torch.zeros(1, 3, size, size))


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_the_dry_run_is_the_pruner_on_torchvision(name):
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    make = SHORT_NETS.get(name, lambda: torchvision.models.get_model(name, **options))
    agree(seeded(make), torch.zeros(1, 3, 32, 32))
