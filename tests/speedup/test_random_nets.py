"""Random networks of random blocks with random masks: the small one is the masked one.

NNI_GCONV_EXAMPLES says how many are tried (default 60).
"""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from speedup_tools import (
    assert_same_outputs,
    filter_masks,
    masked,
    outputs_of,
    randn,
    randomise,
    zeroing_masks,
)
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from nni_gconv import ModelSpeedup

BLOCKS = (
    "conv norm residual concat depthwise grouped gate shared tied pool pad_a transposed output "
    "valid prelu inplace split halves pixels permute scale constant shuffle unit stage group_norm "
    "transposed_groups side_by_side glu attention silent pick over_channels next "
    "kernels dots total blur response heads uneven unbind stream spatial"
).split()
ENDS = ("flatten", "mean", "linear", "map")
ACTIVATIONS = (F.relu, torch.sigmoid, F.gelu, torch.tanh, F.hardswish, torch.relu_)


class RandomNet(nn.Module):
    """Blocks in a row; `extra` holds the outputs that come from the middle."""

    def __init__(self, blocks, end, width, biases, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.blocks, self.end = blocks, end
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=biases)
        self.biases = biases
        channels = width
        for index, block in enumerate(blocks):
            channels = self._build(f"b{index}", block, channels)
        self.act = [ACTIVATIONS[self.rng.integers(len(ACTIVATIONS))] for _ in blocks]
        size = channels * 16 if end == "flatten" else channels
        if end == "map":
            self.head = nn.Conv2d(channels, 3, 1)
        elif end == "linear":
            self.hidden, self.head = nn.Linear(size, 6), nn.Linear(6, 3)
        else:
            self.head = nn.Linear(size, 3)
        del self.rng

    def _conv(self, inside, outside, kernel=3, groups=1):
        padding = kernel // 2
        return nn.Conv2d(inside, outside, kernel, padding=padding, groups=groups, bias=self.biases)

    def _build(self, name, block, channels):
        wide = int(self.rng.integers(3, 9))
        kernel = int(self.rng.choice([1, 3]))

        def add(suffix, module):
            setattr(self, f"{name}_{suffix}", module)

        after = channels
        if block in ("conv", "inplace", "output", "constant"):
            add("a", self._conv(channels, wide, kernel))
            after = wide
        elif block == "valid":
            add("a", nn.Conv2d(channels, wide, 3, bias=self.biases))
            after = wide
        elif block == "norm":
            add("a", self._conv(channels, wide, kernel))
            add("bn", self.rng.choice([nn.BatchNorm2d, nn.InstanceNorm2d])(wide, affine=True))
            after = wide
        elif block == "residual":
            add("a", self._conv(channels, wide, kernel))
            add("bn", nn.BatchNorm2d(wide))
            add("b", self._conv(wide, channels, 3))
            add("bn2", nn.BatchNorm2d(channels))
        elif block == "concat":
            add("a", self._conv(channels, wide, kernel))
            after = channels + wide
        elif block == "depthwise":
            times = int(self.rng.integers(1, 3))
            add("a", self._conv(channels, channels * times, 3, groups=channels))
            add("bn", nn.BatchNorm2d(channels * times))
            after = channels * times
        elif block == "grouped":
            groups = int(self.rng.choice([2, 3]))
            add("even", self._conv(channels, groups * 3, 1))
            add("a", self._conv(groups * 3, groups * 2, kernel, groups=groups))
            after = groups * 2
        elif block == "gate":
            add("a", self._conv(channels, 3, 1))
            add("b", self._conv(3, channels, 1))
        elif block == "shared":
            add("a", self._conv(channels, channels, kernel))
            add("bn", nn.BatchNorm2d(channels))
        elif block == "tied":
            add("a", self._conv(channels, wide, kernel))
            add("b", self._conv(channels, wide, kernel))
            getattr(self, f"{name}_b").weight = getattr(self, f"{name}_a").weight
            after = wide
        elif block == "pad_a":
            add("pad", nn.ZeroPad3d((0, 0, 0, 0, 1, 2)))
            add("a", self._conv(channels, channels + 3, kernel))
            after = channels + 3
        elif block == "transposed":
            add("a", nn.ConvTranspose2d(channels, wide, 3, padding=1, bias=self.biases))
            after = wide
        elif block == "prelu":
            add("a", self._conv(channels, wide, kernel))
            add("act", nn.PReLU(wide))
            after = wide
        elif block == "scale":
            setattr(self, f"{name}_scale", nn.Parameter(torch.rand(channels, 1, 1)))
        elif block == "split":
            add("a", self._conv(channels, 6, kernel))
            after = 3
        elif block == "halves":
            add("a", self._conv(channels, 8, kernel))
            add("b", self._conv(4, 4, kernel))
            after = 8
        elif block == "pixels":
            add("a", self._conv(4 * channels, 12, kernel))
            after = 3
        else:
            after = self._build_arranged(block, channels, kernel, add)
        return after

    def _build_arranged(self, block, channels, kernel, add):
        """Blocks whose channels are tied or balanced by where they stand."""
        groups = int(self.rng.choice([2, 3]))
        wide = groups * int(self.rng.integers(2, 5))
        if block == "shuffle":
            add("a", self._conv(channels, wide, kernel))
            add("shuffle", Shuffle(groups, int(self.rng.integers(4))))
            return wide
        if block == "unit":
            add("even", self._conv(channels, groups * 4, 1))
            add("a", self._conv(groups * 4, 4 * groups, 1, groups=groups))
            add("shuffle", Shuffle(groups, int(self.rng.integers(4))))
            add("b", self._conv(4 * groups, 4 * groups, 3, groups=4 * groups))
            add("c", self._conv(4 * groups, 4 * groups, 1, groups=groups))
            return 4 * groups
        if block == "stage":
            half = int(self.rng.integers(2, 4))
            add("a", self._conv(channels, 2 * half, kernel))
            add("b", self._conv(half, half, 3))
            add("c", self._conv(3 * half, wide, 1))
            return wide
        if block == "group_norm":
            add("a", self._conv(channels, 2 * wide, kernel))
            add("norm", nn.GroupNorm(int(self.rng.choice([2, wide, 2 * wide])), 2 * wide,
                                     affine=bool(self.rng.integers(2))))  # fmt: skip
            return 2 * wide
        if block == "transposed_groups":
            add("a", self._conv(channels, wide, 1))
            groups = int(self.rng.choice([groups, wide]))
            add("up", nn.ConvTranspose2d(wide, 2 * wide, 3, padding=1, groups=groups,
                                         bias=self.biases))  # fmt: skip
            return 2 * wide
        if block == "side_by_side":
            add("a", self._conv(channels, 2 * groups, kernel))
            add("b", self._conv(channels, groups, 1))
            add("c", self._conv(3 * groups, wide, 1, groups=groups))
            return wide
        if block == "glu":
            add("a", self._conv(channels, 2 * wide, kernel))
            return wide
        if block in ("over_channels", "next"):
            add("a", self._conv(channels, wide, kernel))
            add("norm", self._norm_over_channels(wide))
            if block == "next":
                add("dw", self._conv(wide, wide, 3, groups=wide))
                add("up", nn.Linear(wide, 2 * wide))
                add("down", nn.Linear(2 * wide, wide))
            return wide
        if block in ("response", "heads", "uneven", "unbind", "stream", "spatial"):
            return self._build_mixed(block, channels, groups, wide, add)
        if block in ("kernels", "dots"):
            for name in "ab" if block == "kernels" else "abc":
                add(name, self._conv(channels, wide, 1))
            add("d", self._conv(wide, channels, 1))
            return channels
        if block == "blur":
            add("blur", Blur(channels))
            return channels
        if block == "pick":
            add("a", self._conv(channels, wide, kernel))
            picked = int(self.rng.integers(2, wide + 3))
            add("pick", Pick(self.rng.choice(wide, picked)))
            return picked
        if block == "attention":
            add("a", self._conv(channels, 2 * wide, kernel))
            add("b", self._conv(wide, 3, 1))
            add("c", self._conv(3, 2 * wide, 1))
            return wide
        return channels

    def _build_mixed(self, block, channels, groups, wide, add):
        """Blocks that mix channels, or take them apart in parts."""
        if block == "response":
            add("up", self._conv(channels, wide, 1))
            add("norm", Response(wide, first=bool(self.rng.integers(2))))
            add("down", self._conv(wide, channels, 1))
        elif block == "heads":
            for name in "abc":
                add(name, self._conv(channels, wide, 1))
            add("heads", Heads(groups))
            add("d", self._conv(wide, channels, 1))
        elif block == "uneven":
            first, second = (int(n) for n in self.rng.integers(2, 5, 2))
            add("parts", Uneven(first, second))
            add("a", self._conv(channels, first + second, 3))
            add("b", self._conv(first, 3, 3))
            return 3 + second
        elif block == "unbind":
            for name in "ab":
                add(name, self._conv(channels, wide, 1))
            return wide
        elif block == "stream":
            add("a", self._conv(channels, wide, 1))
            for number in range(2):
                add(f"norm{number}", OverLast(nn.LayerNorm(wide)))
                add(f"up{number}", self._conv(wide, 2 * wide, 1))
                add(f"down{number}", self._conv(2 * wide, wide, 1))
            return wide
        else:
            add("gate", self._conv(2, 1, 3))
        return channels

    def _norm_over_channels(self, width):
        ways = (
            lambda: nn.GroupNorm(1, width),
            lambda: LayerNorm2d(width),
            lambda: OverLast(nn.LayerNorm(width)),
            lambda: OverLast(nn.RMSNorm(width, elementwise_affine=bool(self.rng.integers(2)))),
        )
        return ways[self.rng.integers(len(ways))]()

    def forward(self, x):
        x, extra = F.relu(self.stem(x)), []
        for index, block in enumerate(self.blocks):
            x = self._run(f"b{index}", block, x, self.act[index], extra)
        if self.end == "map":
            return self.head(x), extra
        x = F.adaptive_avg_pool2d(x, 4).flatten(1) if self.end == "flatten" else x.mean((2, 3))
        if self.end == "linear":
            x = torch.relu(self.hidden(x))
        return {"logits": self.head(x), "extra": extra}

    def _run(self, name, block, x, act, extra):
        def get(suffix):
            return getattr(self, f"{name}_{suffix}")

        if block in ("conv", "valid", "transposed"):
            return act(get("a")(x))
        if block == "norm":
            return act(get("bn")(get("a")(x)))
        if block == "residual":
            return act(x + get("bn2")(get("b")(act(get("bn")(get("a")(x))))))
        if block == "concat":
            return torch.cat([x, act(get("a")(x))], 1)
        if block == "depthwise":
            return act(get("bn")(get("a")(x)))
        if block == "grouped":
            return act(get("a")(act(get("even")(x))))
        if block == "gate":
            return x * torch.sigmoid(get("b")(F.relu(get("a")(x.mean((2, 3), keepdim=True)))))
        if block == "shared":
            x = act(get("bn")(get("a")(x)))
            return act(get("bn")(get("a")(x)))
        if block == "tied":
            return act(get("a")(x)) * torch.sigmoid(get("b")(x))
        if block == "pool":
            return F.max_pool2d(x, 3, 1, 1) - F.avg_pool2d(x, 3, 1, 1)
        if block == "pad_a":
            return act(get("pad")(x) + get("a")(x))
        if block == "output":
            x = act(get("a")(x))
            extra.append(x)
            return x.clone()
        if block == "prelu":
            return get("act")(get("a")(x))
        if block == "inplace":
            y = get("a")(x)
            z = y[:, :, 1:]
            y.relu_()
            z.add_(0.25)
            return y
        if block == "split":
            first, second = get("a")(x).chunk(2, 1)
            return act(first) * second
        if block == "halves":
            first, second = get("a")(x).chunk(2, 1)
            return torch.cat([act(get("b")(first)), second], 1)
        if block == "pixels":
            return act(F.pixel_shuffle(get("a")(F.pixel_unshuffle(x, 2)), 2))
        if block == "permute":
            return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        if block == "scale":
            return act(x * get("scale"))
        if block == "constant":
            return act(F.pad(get("a")(x), (1, 0, 1, 0), value=0.5)[:, :, 1:, 1:])
        return self._run_arranged(block, x, act, get)

    def _run_arranged(self, block, x, act, get):
        if block == "shuffle":
            return get("shuffle")(act(get("a")(x)))
        if block == "unit":
            x = get("shuffle")(act(get("a")(act(get("even")(x)))))
            return act(get("c")(get("b")(x)))
        if block == "stage":
            first, second = get("a")(x).chunk(2, 1)
            return act(get("c")(torch.cat([first, second, second + act(get("b")(second))], 1)))
        if block == "group_norm":
            return act(get("norm")(get("a")(x)))
        if block == "transposed_groups":
            return act(get("up")(get("a")(x)))
        if block == "side_by_side":
            return act(get("c")(torch.cat([get("a")(x), act(get("b")(x))], 1)))
        if block == "glu":
            return F.glu(get("a")(x), 1)
        if block == "attention":
            parts = get("a")(x).unflatten(1, (2, -1))
            gate = get("c")(F.relu(get("b")(parts.sum(1).mean((2, 3), keepdim=True))))
            return (parts * gate.unflatten(1, (2, -1)).softmax(1)).sum(1)
        if block == "pick":
            return act(get("pick")(get("a")(x)))
        if block == "over_channels":
            return act(get("norm")(get("a")(x)))
        if block == "kernels":
            parts = torch.stack([get("a")(x), act(get("b")(x))], 1)
            return get("d")((parts * parts.mean((3, 4), keepdim=True).softmax(1)).sum(1))
        if block == "dots":
            q, k, v = (get(name)(x).flatten(2) for name in "abc")
            weights = (q.transpose(1, 2) @ k).softmax(-1)
            y = torch.einsum("bij,bcj->bci", weights, act(v))
            return x + get("d")(y.unflatten(2, x.shape[2:]))
        if block == "total":
            x = F.relu(x)
            return x / (1 + x.sum(1, keepdim=True) + x.norm(dim=1, keepdim=True) + x.amax(1, True))
        if block == "blur":
            return get("blur")(x)
        if block in ("response", "heads", "uneven", "unbind", "stream", "spatial"):
            return self._run_mixed(block, x, act, get)
        if block == "next":
            x = get("a")(x)
            y = get("norm")(get("dw")(x)).permute(0, 2, 3, 1)
            return x + get("down")(F.gelu(get("up")(y))).permute(0, 3, 1, 2)
        x = torch.where(x > 0.1, x, 0.0)  # silent
        return act(x.masked_fill(x > 1.5, 0.0))

    def _run_mixed(self, block, x, act, get):
        if block == "response":
            return x + get("down")(get("norm")(act(get("up")(x))))
        if block == "heads":
            return x + get("d")(get("heads")(*(get(name)(x) for name in "abc")))
        if block == "uneven":
            first, second = get("parts")(get("a")(x))
            return torch.cat([act(get("b")(first)), act(second)], 1)
        if block == "unbind":
            one, other = torch.stack([get("a")(x), act(get("b")(x))], 2).unbind(2)
            return one + torch.sigmoid(other) * other
        if block == "stream":
            x = get("a")(x)
            for number in range(2):
                x = x + get(f"down{number}")(F.gelu(get(f"up{number}")(get(f"norm{number}")(x))))
            return x
        x = F.relu(x)  # of numbers that may be negative the largest counts zeros
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(get("gate")(pooled))


class Response(nn.Module):
    """Global response normalisation of ConvNeXt V2, channels first or last."""

    def __init__(self, width, first):
        super().__init__()
        shape = (width, 1, 1) if first else (width,)
        self.weight, self.bias = (nn.Parameter(torch.rand(shape)) for _ in range(2))
        self.first, self.eps = first, 1e-5

    def forward(self, x):
        if not self.first:
            x = x.movedim(1, 3)
        norms = x.norm(dim=(2, 3) if self.first else (1, 2), keepdim=True)
        norms = norms / (norms.mean(1 if self.first else 3, keepdim=True) + self.eps)
        x = x + self.bias + self.weight * (x * norms)
        return x if self.first else x.movedim(3, 1)


class Heads(nn.Module):
    """Attention over positions with several heads."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, *parts):
        n, _, h, w = parts[0].shape
        q, k, v = (x.reshape(n, self.heads, -1, h * w) for x in parts)
        weights = (q.transpose(2, 3) @ k).softmax(-1)
        return (v @ weights.transpose(2, 3)).reshape(n, -1, h, w)


class Uneven(nn.Module):
    """Channels in two parts whose widths the module holds."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return x.split([self.first, self.second], 1)


class Blur(nn.Module):
    """A filter for each channel that nothing learns."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("filt", torch.rand(1, 1, 3, 3).expand(channels, 1, 3, 3).clone())

    def forward(self, x):
        return F.conv2d(x, self.filt, padding=1, groups=x.shape[1])


class OverLast(nn.Module):
    """A norm over the last dimension, of images."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pick(nn.Module):
    """Channels in an order of its own, some of them twice and some not at all."""

    def __init__(self, index):
        super().__init__()
        self.register_buffer("index", torch.from_numpy(index))

    def forward(self, x):
        return x[:, self.index]


class Shuffle(nn.Module):
    """A channel shuffle in one of the ways in which they are written."""

    def __init__(self, groups, way):
        super().__init__()
        self.groups, self.way = groups, way

    def forward(self, x):
        n, c, h, w = x.shape
        if self.way == 0:
            return F.channel_shuffle(x, self.groups)
        if self.way == 1:
            x = x.view(n, self.groups, c // self.groups, h, w)
        elif self.way == 2:
            x = x.reshape(n, c // self.groups, self.groups, -1)
        else:
            x = x.view(n, self.groups, -1, h, w)
        return x.transpose(1, 2).reshape(n, c, h, w)


@st.composite
def cases(draw):
    blocks = draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6))
    return {
        "blocks": blocks,
        "end": draw(st.sampled_from(ENDS)),
        "width": draw(st.integers(2, 8)),
        "biases": draw(st.booleans()),
        "seed": draw(st.integers(0, 9999)),
        "masks": draw(st.sampled_from(["silent", "filters", "both"])),
        "share": draw(st.sampled_from([0.2, 0.5, 0.8, 1.0])),
    }


QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=4, derandomize=True, **QUIET)
@given(cases())
def test_small_equals_masked_for_a_few(case):
    check(case)


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("NNI_GCONV_EXAMPLES", "60")),
    derandomize="NNI_GCONV_EXAMPLES" not in os.environ,
    **QUIET,
)
@given(cases())
def test_small_equals_masked(case):
    check(case)


def check(case):
    """Compare the small network of a case with the masked one."""
    arguments = [case[k] for k in ("blocks", "end", "width", "biases", "seed")]
    torch.manual_seed(case["seed"])
    net = randomise(RandomNet(*arguments), case["seed"])
    dummy = randn(2, 3, 14, 14, seed=case["seed"])
    masks = {}
    if case["masks"] in ("silent", "both"):
        masks = zeroing_masks(net, dummy, case["seed"], min(case["share"], 0.8))
    if case["masks"] in ("filters", "both"):
        for name, targets in filter_masks(net, case["seed"], case["share"]).items():
            entry = masks.setdefault(name, {})
            entry["weight"] = entry.get("weight", 1.0) * targets["weight"]
    if any(b == "tied" for b in case["blocks"]):
        masks = one_mask_for_tied(net, masks)
    expected = outputs_of(masked(net, masks), dummy)
    before = sum(p.numel() for p in net.parameters())
    constants = "silence" if case["masks"] == "silent" else "fold"
    speedup = ModelSpeedup(net, dummy, masks, verify=False, constants=constants)
    assert_same_outputs(expected, outputs_of(speedup.speedup_model(), dummy))
    if case["masks"] == "silent":
        assert sum(p.numel() for p in net.parameters()) <= before
    net.train()
    outputs_of(net, dummy)


def one_mask_for_tied(net, masks):
    """A tied weight is one tensor: it has one mask, whatever its names."""
    for name, targets in list(masks.items()):
        twin = name[:-1] + "b" if name.endswith("_a") else ""
        if twin and hasattr(net, twin) and getattr(net, twin).weight is getattr(net, name).weight:
            both = targets.get("weight", torch.ones(())) * masks.get(twin, {}).get(
                "weight", torch.ones(())
            )
            targets["weight"] = both
            masks.setdefault(twin, {})["weight"] = both
    return masks
