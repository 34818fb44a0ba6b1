"""Norms over channels: those that went count as the zeros that they were."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from speedup_nets import Net, Small, X, conv, middle, reasons, shapes
from speedup_tools import line_of, masked, outputs_of, randn, randomise, rows_off, shrink
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from nni_gconv import FPGMPruner, load_compact, save_compact
from nni_gconv.artefact import plan_of
from nni_gconv.errors import CheckpointError
from nni_gconv.export import export_model
from nni_gconv.graph import KeptNorm, find_norm, thin_norm


class ByHand(nn.Module):
    """Mean and variance written out, as ConvNeXt's own code has them."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.gamma[:, None, None] * x + self.beta[:, None, None]


class RootMeanSquare(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.epsilon = 1e-5

    def forward(self, x):
        return self.scale * (x * torch.rsqrt(x.square().mean(1, True) + self.epsilon))


class WithActivation(nn.LayerNorm):
    """timm's LayerNormAct2d."""

    def __init__(self, width):
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return self.act(self.drop(x.permute(0, 3, 1, 2)))


class LastToFirst(nn.Module):
    """A norm over the last dimension, of images."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


FIRST = {
    "layer norm of torchvision": lambda: LayerNorm2d(8),
    "one group": lambda: nn.GroupNorm(1, 8),
    "over channels and space": lambda: nn.LayerNorm([8, 8, 8]),
    "by hand": lambda: ByHand(8),
    "root mean square by hand": lambda: RootMeanSquare(8),
    "with an activation": lambda: WithActivation(8),
    "last": lambda: LastToFirst(nn.LayerNorm(8)),
    "last, without a shift": lambda: LastToFirst(nn.LayerNorm(8, bias=False)),
    "last, root mean square": lambda: LastToFirst(nn.RMSNorm(8, eps=1e-3)),
    "last, root mean square, no scale": lambda: LastToFirst(
        nn.RMSNorm(8, eps=None, elementwise_affine=False)
    ),
}


class Response(nn.Module):
    """Global response normalisation, as ConvNeXt V2's own code has it."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x):
        gx = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * nx) + self.beta + x


class ResponseFirst(nn.Module):
    """The same of timm, where channels stand first."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.eps = 1e-5

    def forward(self, x):
        g = x.norm(p=2, dim=(2, 3), keepdim=True)
        n = g / (g.mean(dim=1, keepdim=True) + self.eps)
        view = (1, -1, 1, 1)
        return x + torch.addcmul(self.bias.view(view), self.weight.view(view), x * n)


FIRST["response, last"] = lambda: LastToFirst(Response(8))
FIRST["response"] = lambda: ResponseFirst(8)


def tensors_of(norm):
    return [f"norm.{n}" for n, _ in norm.named_parameters()]


def silence(net, rows):
    """Mask filters of the stem and what a norm adds to them."""
    masks = rows_off(net, "stem", rows)
    for name, parameter in net.norm.named_parameters():
        mask = torch.ones_like(parameter)
        mask[(rows if mask.dim() < 4 else (..., rows))] = 0
        module, _, target = f"norm.{name}".rpartition(".")
        masks.setdefault(module, {})[target] = mask
    return masks


@pytest.mark.parametrize("name", FIRST)
def test_a_stream_through_a_norm_is_cut(name):
    net = middle(lambda s, x: s.a(s.norm(x)), a=conv(8, 8), norm=FIRST[name]())
    shrink(net, X, silence(net, [1, 2, 6]), verify=True)
    assert shapes(net, "stem", "a") == [(5, 3), (8, 5)]
    assert all(5 in p.shape for p in net.norm.parameters())
    (norm,) = [m for m in net.modules() if isinstance(m, KeptNorm)]
    assert (norm.norm.kept, norm.norm.width) == (5, 8)
    # Once more: what is counted are still the channels of the first network.
    shrink(net, X, silence(net, [0]), verify=True)
    assert (shapes(net, "stem", "a"), norm.norm.width) == ([(4, 3), (8, 4)], 8)


@pytest.mark.parametrize("name", ["one group", "layer norm of torchvision", "last"])
def test_a_norm_of_what_is_left_would_be_another(name):
    """The test above can fail: torch's own norm of the kept channels gives other numbers."""
    net = middle(lambda s, x: s.a(s.norm(x)), a=conv(8, 8), norm=FIRST[name]())
    masks = silence(net, [1, 2, 6])
    (expected,) = outputs_of(masked(net, masks), X)
    shrink(net, X, masks)
    (norm,) = [m for m in net.modules() if isinstance(m, KeptNorm)]
    thin_norm(norm, type(norm.norm)(norm.norm.dims, norm.norm.eps))
    (got,) = outputs_of(net, X)
    assert float((got - expected).abs().max()) > 1e-3


def test_a_channel_that_is_not_zero_in_front_of_a_norm_stays():
    """A norm with masked scale emits zeros of whatever it reads, and what it reads it counts."""
    net = middle(lambda s, x: s.a(s.norm(x + 1)), a=conv(8, 8), norm=nn.GroupNorm(1, 8))
    shrink(net, X, silence(net, [1, 2]), smaller=False)
    assert shapes(net, "stem") == [(8, 3)]
    with pytest.raises(Exception, match="turns a masked channel into a constant that norm reads"):
        FPGMPruner(net, [{"op_names": ["stem"], "sparse_ratio": 0.5}], dummy_input=X).compress()


def test_a_norm_without_scale_and_shift():
    """Its mean makes a constant of a masked channel; a pruner leaves it whole and says so."""
    net = middle(lambda s, x: s.a(s.norm(x)), a=conv(8, 8), norm=nn.GroupNorm(1, 8, affine=False))
    shrink(net, X, rows_off(net, "stem", [1, 2]), smaller=False)


def test_called_twice():
    net = middle(lambda s, x: s.norm(s.a(s.norm(x))), a=conv(8, 8), norm=nn.GroupNorm(1, 8))
    masks = {**silence(net, [3, 4]), **rows_off(net, "a", [3, 4])}
    shrink(net, X, masks)
    assert shapes(net, "stem", "a", "head") == [(6, 3), (6, 6), (4, 6)]


def test_flattened_space():
    """Each channel stands several times along the dimension that is normalised."""
    net = randomise(
        Small(
            lambda s, x: s.head(s.norm(s.stem(x).flatten(1))),
            stem=conv(3, 6),
            norm=nn.LayerNorm(6 * 16),
            head=nn.Linear(6 * 16, 3),
        )
    )
    masks = rows_off(net, "stem", [1, 4])
    gone = [c * 16 + i for c in (1, 4) for i in range(16)]
    masks.update(rows_off(net, "norm", gone))
    shrink(net, randn(2, 3, 4, 4), masks)
    assert (net.head.in_features, net.norm.norm.kept, net.norm.norm.width) == (64, 64, 96)


class ConvNextBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.dw = conv(8, 8, 7, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.1))

    def forward(self, x):
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + self.scale * y


def test_convnext_block():
    net = middle(lambda s, x: s.block(x), block=ConvNextBlock())
    assert reasons(net, X)["block.down"] is None
    gone = [0, 5]
    masks = rows_off(net, "stem", gone, "block.dw", "block.norm", "block.down")
    masks.update(rows_off(net, "block.up", list(range(0, 30, 2))))
    shrink(net, X, masks)
    assert shapes(net, "block.dw", "block.up", "block.down") == [(6, 1), (17, 6), (6, 17)]
    assert tuple(net.block.scale.shape) == (6, 1, 1)


def test_a_norm_called_as_a_function_keeps_its_width():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return F.layer_norm(x.permute(0, 2, 3, 1), (8,), self.weight).permute(0, 3, 1, 2) + x

    net = middle(lambda s, x: s.norm(x), norm=Called())
    assert "normalised over channels by a function" in reasons(net, X)["stem"]
    assert line_of(Called, "F.layer_norm") in reasons(net, X)["stem"]
    shrink(net, X, rows_off(net, "stem", [0]), smaller=False)


# -- which modules are norms ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST)
def test_recognised(name):
    norms = [find_norm(m) for m in FIRST[name]().modules()]
    assert len([n for n in norms if n is not None]) == 1


class Shrunk(ByHand):
    def forward(self, x):
        return super().forward(x) * 0.5


class Clamped(ByHand):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class Unbiased(ByHand):
    def forward(self, x):
        x = (x - x.mean(1, True)) / (x.var(1, keepdim=True) + self.eps).sqrt()
        return self.gamma[:, None, None] * x + self.beta[:, None, None]


@pytest.mark.parametrize(
    "module",
    [Shrunk(8), Clamped(8), Unbiased(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.Linear(8, 8),
     nn.InstanceNorm2d(8, affine=True), ConvNextBlock(), nn.PReLU(8)],
)  # fmt: skip
def test_not_recognised(module):
    assert find_norm(module) is None


# -- what is left is a module like any other ------------------------------------------------------


def cut_net():
    net = randomise(dense_net())
    masks = {**silence(net, [1, 2, 6])}
    masks.update(rows_off(net, "first", [1, 2, 6]))
    shrink(net, X, masks)
    return net


def dense_net():
    """Build the architecture alone."""
    return Net(
        lambda s, x: s.a(s.norm(s.first(x))), a=conv(8, 8), norm=nn.GroupNorm(1, 8),
        first=LayerNorm2d(8),
    )  # fmt: skip


def test_saved_and_loaded(tmp_path):
    net = cut_net()
    file = save_compact(net, tmp_path / "small.safetensors")
    loaded = load_compact(file, dense_net)
    assert torch.equal(outputs_of(net, X)[0], outputs_of(loaded.double(), X)[0])
    assert loaded.norm.norm == net.norm.norm
    assert plan_of(loaded) == plan_of(net)
    with pytest.raises(CheckpointError, match="norm is of another architecture: here is no such"):
        load_compact(
            file,
            lambda: middle(
                lambda s, x: x, a=conv(8, 8), norm=nn.GroupNorm(1, 8, eps=0.5), first=LayerNorm2d(8)
            ),
        )


def response_net():
    """Response normalisation, and a mean over channels whose reader takes the divisor."""

    def forward(s, x):
        y = s.gate(s.norm(x).relu().mean(1, keepdim=True))
        return s.a(x) * y.sigmoid()

    return Net(forward, a=conv(8, 8), norm=ResponseFirst(8), gate=conv(1, 1))


def cut_response_net():
    net = randomise(response_net())
    shrink(net, X, silence(net, [1, 2, 6]), verify=True)
    return net


def test_responses_and_divisors_are_saved_loaded_and_trained(tmp_path):
    net = cut_response_net()
    assert (shapes(net, "stem", "a"), net.norm.norm.response) == ([(5, 3), (8, 5)], True)
    loaded = load_compact(save_compact(net, tmp_path / "small.safetensors"), response_net)
    assert torch.equal(outputs_of(net, X)[0], outputs_of(loaded.double(), X)[0])
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(X).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    moved = [name for name, p in net.named_parameters() if not torch.equal(before[name], p)]
    assert {"norm.weight", "gate.weight", "stem.weight"} <= set(moved)


@pytest.mark.slow
def test_responses_and_divisors_are_exported(tmp_path):
    export_model(cut_response_net().float(), X.float(), tmp_path / "small.onnx")  # compares


def test_pickled_and_copied():
    net = Net(None, norm=nn.GroupNorm(1, 8)).norm
    thin_norm(net, type(find_norm(net))((), 1e-5, channel=1, width=16, kept=8))
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(net), buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(again(x), net(x))


@pytest.mark.slow
def test_exported(tmp_path):
    net = cut_net().float()
    export_model(net, X.float(), tmp_path / "small.onnx")  # compares it with the network


def test_trains_as_the_masked_network_does():
    """Gradients of what is left are those of the masked network."""
    net = middle(lambda s, x: s.a(s.norm(x)), a=conv(8, 8), norm=nn.GroupNorm(1, 8))
    masks = silence(net, [1, 2, 6])
    dense = masked(net, masks)
    shrink(net, X, masks)
    stays = np.delete(np.arange(8), [1, 2, 6])
    for model in (dense, net):
        model.train()(X).square().sum().backward()
    assert torch.allclose(dense.norm.weight.grad[stays], net.norm.weight.grad, rtol=1e-9)
    assert torch.allclose(dense.stem.weight.grad[stays], net.stem.weight.grad, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype):
    norm = nn.GroupNorm(1, 8)
    kept = copy.deepcopy(norm).to(dtype)
    thin_norm(kept, type(find_norm(norm))((), 1e-5, channel=1, width=8, kept=8))
    x = (torch.randn(2, 8, 40, 40) * 20 + 100).to(dtype)
    assert kept(x).dtype == dtype
    assert float((kept(x).float() - norm.float()(x.float())).abs().max()) < 0.05


def test_hooks_flags_and_types_stay():
    net = middle(lambda s, x: s.a(s.norm(x)), a=conv(8, 8), norm=nn.LayerNorm([8, 8, 8]))
    net.norm.weight.requires_grad_(False)
    seen = []
    net.norm.register_forward_hook(lambda *_: seen.append(1))
    net.train()
    net.norm.eval()
    shrink(net, X, silence(net, [0, 5]))
    seen.clear()
    net(X)
    assert (seen, net.norm.training, net.norm.weight.requires_grad) == ([1], False, False)
    assert net.norm.normalized_shape == (6, 8, 8)
