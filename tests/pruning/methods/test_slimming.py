"""Network slimming: which scales count, what the penalty does to them, and what is cut."""

from __future__ import annotations

import nni
import pytest
import torch
from nni.compression import TorchEvaluator
from pruning_nets import conv, loop_evaluator, mobile_net, plain_net, randomised
from torch import nn

from nni_gconv.errors import ConfigError
from nni_gconv.profiling import count
from nni_gconv.pruning.methods.slimming.pruner import SlimmingPruner
from nni_gconv.speedup import ModelSpeedup
from nni_gconv.training.zoo import create_model

SCALES = [
    [0.9, 0.05, -0.6, 0.01],
    [0.2, 0.02, 0.03, 0.04, 0.5, -0.7],
    [0.001, 0.002],
]
CONVS = [{"op_types": ["Conv2d"]}]


def chain(*scales, inputs=3, final=4):
    """Convolutions with batch norms of these scales, and a last one without."""
    torch.manual_seed(0)
    layers, width = [], inputs
    for scale in scales:
        layers += [conv(width, len(scale), bias=False), nn.BatchNorm2d(len(scale)), nn.ReLU()]
        layers[-2].weight.data = torch.tensor(scale)
        width = len(scale)
    return nn.Sequential(*layers, conv(width, final))


def bits(masks, name):
    return "".join(str(int(x)) for x in masks[name]["weight"])


def cut(model, config, image=8, **options):
    example = torch.zeros(1, 3, image, image)
    pruner = SlimmingPruner(model, config, dummy_input=example, **options)
    return pruner.compress()[1]


class TestThresholds:
    @pytest.mark.parametrize(
        ("ratio", "expected"),
        [
            (0.25, ["1110", "111111", "01"]),
            (0.5, ["1110", "100011", "01"]),
            (0.7, ["1010", "000011", "01"]),
        ],
    )
    def test_the_percentile_of_the_paper(self, ratio, expected):
        config = [{**CONVS[0], "sparse_ratio": ratio, "global_group_id": "all"}]
        masks = cut(chain(*SCALES), config, coupling="union")
        assert [bits(masks, name) for name in ("1", "4", "7")] == expected

    def test_the_clamp_of_the_reference(self):
        config = [{**CONVS[0], "sparse_ratio": 0.7, "global_group_id": "all"}]
        masks = cut(chain(*SCALES), config, coupling="union", clamp=True)
        assert [bits(masks, name) for name in ("1", "4", "7")] == ["1111", "111111", "01"]

    def test_a_floor_keeps_the_largest_whatever_their_sign(self):
        config = [{**CONVS[0], "sparse_ratio": 0.9, "global_group_id": "all", "min_channels": 2}]
        masks = cut(chain([-0.9, 0.1, 0.05], [0.95, 1.0, 2.0, 3.0]), config, coupling="union")
        assert bits(masks, "1") == "110"

    @pytest.mark.parametrize("rule", ["mean", "max"])
    def test_scales_of_different_layers_are_compared_as_they_are(self, rule):
        config = [{**CONVS[0], "sparse_ratio": 0.5, "global_group_id": "all"}]
        masks = cut(chain(*SCALES), config, coupling=rule)
        # Six of twelve go: .001, .01, .02, .03, .04, .05; .002 is the last of its layer.
        assert [bits(masks, name) for name in ("1", "4", "7")] == ["1010", "100011", "01"]

    def test_a_ratio_of_each_layer(self):
        config = [{**CONVS[0], "sparse_ratio": 0.5}]
        for rule in ("mean", "max", "union"):
            masks = cut(chain(*SCALES), config, coupling=rule)
            assert [bits(masks, name) for name in ("1", "4", "7")] == ["1010", "100011", "01"]

    def test_a_budget_takes_from_the_layer_of_small_scales(self):
        weak, strong = [0.01 * k for k in range(1, 9)], [1.0 + 0.01 * k for k in range(8)]
        left = {}
        for group in (None, "all"):
            config = [{**CONVS[0], **({"global_group_id": group} if group else {})}]
            masks = cut(chain(strong, weak), config, budget={"params": 0.5})
            left[group] = [bits(masks, name).count("1") for name in ("1", "4")]
        assert abs(left[None][0] - left[None][1]) <= 2  # to end within 1 % of the budget
        assert left["all"][0] == 8
        assert left["all"][1] < left[None][1]


class Sum(nn.Module):
    """Two branches, each with a norm, added; the norms are made before the convolutions."""

    def __init__(self, first, second):
        super().__init__()
        self.norm_b, self.norm_a = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.a, self.b = conv(3, 4, bias=False), conv(3, 4, bias=False)
        self.head = conv(4, 2)
        self.norm_a.weight.data, self.norm_b.weight.data = torch.tensor(first), torch.tensor(second)

    def forward(self, x):
        return self.head((self.norm_a(self.a(x)) + self.norm_b(self.b(x))).relu())


FIRST, SECOND = [0.9, 0.01, 0.3, 0.02], [0.02, 0.03, 0.4, 0.5]
BRANCHES = [{"op_names": ["a", "b"], "sparse_ratio": 0.5, "global_group_id": 0}]
GOAL = [1.0, 0.3, -0.6, 0.05, -0.01, 0.2]


class TestCoupledNorms:
    def test_union_keeps_what_any_norm_needs(self):
        masks = cut(Sum(FIRST, SECOND), BRANCHES, coupling="union")
        # The fifth of eight sorted scales, 0.3, is the threshold.
        assert bits(masks, "norm_a") == bits(masks, "norm_b") == "1011"

    @pytest.mark.parametrize(("rule", "expected"), [("mean", "1010"), ("max", "1001")])
    def test_mean_and_max_cut_as_many_as_asked(self, rule, expected):
        masks = cut(Sum(FIRST, SECOND), BRANCHES, coupling=rule)
        assert bits(masks, "norm_a") == bits(masks, "norm_b") == expected

    def test_every_norm_that_scales_a_channel_counts(self):
        """Pointwise and depthwise convolutions share channels, and each has a norm."""
        model = mobile_net()
        pruner = SlimmingPruner(
            model, [{**CONVS[0], "sparse_ratio": 0.5}], dummy_input=torch.zeros(1, 3, 16, 16)
        )
        assert sorted(map(sorted, map(pruner.voters, pruner.sets))) == [
            ["1", "4"], ["10", "7"], ["13"],
        ]  # fmt: skip

    def test_norms_behind_a_concatenation(self):
        model = randomised(create_model("densenet10"))
        pruner = SlimmingPruner(
            model, [{**CONVS[0], "sparse_ratio": 0.5}], dummy_input=torch.zeros(1, 3, 8, 8)
        )
        voters = [pruner.voters(s) for s in pruner.sets]
        assert max(map(len, voters)) > 1
        assert all(pruner._norms[int(s.classes[0])] for s in pruner.sets)
        assert len({len(v) for v in voters}) > 1  # a later layer is read by fewer norms

    def test_layers_without_a_norm_go_by_their_filters(self):
        model = plain_net()
        model[0].weight.data *= torch.linspace(2, 1, 12).view(12, 1, 1, 1) / model[
            0
        ].weight.data.flatten(1).norm(dim=1).view(12, 1, 1, 1)
        masks = cut(model, [{"op_names": ["0"], "sparse_ratio": 0.25}])
        kept = masks["0"]["weight"].flatten(1).any(1)
        assert kept.tolist() == [True] * 9 + [False] * 3


# -- the penalty ----------------------------------------------------------------------------------


class Bowl(nn.Module):
    """A loss of 1/2 |gamma - goal|^2 for the scales of one norm, through a real forward."""

    def __init__(self, goal):
        super().__init__()
        self.conv, self.norm = conv(3, len(goal), bias=False), nn.BatchNorm2d(len(goal))
        self.head = conv(len(goal), 2)
        self.goal = torch.tensor(goal)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu())


def bowl(goal, *, lr=0.05, steps=400, optimizer=torch.optim.SGD, momentum=0.0, **options):
    """Train the scales alone; returns the pruner."""
    torch.manual_seed(0)
    model = Bowl(goal)
    decay = options.pop("weight_decay", 0.0)
    settings = {"momentum": momentum} if momentum else {}
    made = nni.trace(optimizer)(model.parameters(), lr=lr, weight_decay=decay, **settings)

    def train(model, optimizer, step, scheduler, max_steps, max_epochs):
        for _ in range(max_steps):
            optimizer.zero_grad()
            step(None, model).backward()
            optimizer.step()

    def loss(batch, model):
        scale = model.norm._nni_wrapper.weight
        return (scale - model.goal).square().sum() / 2

    evaluator = TorchEvaluator(train, made, loss, dummy_input=torch.zeros(1, 3, 8, 8))
    pruner = SlimmingPruner(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}], evaluator,
                            **options)  # fmt: skip
    pruner.compress(max_steps=steps)
    return pruner


def scales(pruner, name="norm"):
    return pruner._target_spaces[name]["weight"].target.detach()


class TestPenalty:
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_proximal_ends_at_the_minimum_with_exact_zeros(self, momentum):
        found = scales(bowl(GOAL, strength=0.1, momentum=momentum))
        # argmin 1/2 (g - goal)^2 + s |g|: the goal, shrunk by s.
        assert torch.allclose(found, torch.tensor([0.9, 0.2, -0.5, 0.0, 0.0, 0.1]), atol=1e-4)
        assert found[3] == found[4] == 0

    @pytest.mark.slow
    def test_subgradient_ends_there_too_but_never_at_zero(self):
        found = scales(bowl(GOAL, strength=0.1, penalty="subgradient", lr=0.01, steps=2000))
        assert torch.allclose(found, torch.tensor([0.9, 0.2, -0.5, 0.0, 0.0, 0.1]), atol=2e-3)
        assert (found != 0).all()

    def test_weight_decay_does_not_act_a_second_time(self):
        found = scales(bowl(GOAL, strength=0.1, weight_decay=0.5))
        assert torch.allclose(found[:3], torch.tensor([0.9, 0.2, -0.5]), atol=1e-4)
        found = scales(bowl(GOAL, strength=0.1, weight_decay=0.5, decay_scales=True))
        # argmin 1/2 (g - goal)^2 + s |g| + 1/4 g^2
        assert torch.allclose(found[:3], torch.tensor([0.9, 0.2, -0.5]) / 1.5, atol=1e-4)

    def test_adam_shrinks_by_its_learning_rate(self):
        pruner = bowl([1.0, 1.0], strength=0.5, optimizer=torch.optim.Adam, lr=0.01, steps=1)
        # One step of Adam goes up by at most lr (here: not at all, the goal is reached).
        assert torch.allclose(scales(pruner), torch.tensor([0.995, 0.995]), atol=1e-6)

    def test_a_strength_of_zero_is_plain_training(self):
        for penalty in ("proximal", "subgradient"):
            found = scales(bowl(GOAL, strength=0.0, penalty=penalty))
            assert torch.allclose(found, torch.tensor(GOAL), atol=1e-4)

    def test_only_norms_of_selected_layers_are_penalised(self, tmp_path):
        found = []
        for strength in (0.0, 0.05):
            torch.manual_seed(0)
            model = create_model("resnet8b", width=0.5, in_channels=1)
            config = [{"op_names_re": [r"layer\d\.0\.conv1"], "sparse_ratio": 0.5}]
            evaluator = loop_evaluator(model, tmp_path / str(strength), lr=1e-3)
            pruner = SlimmingPruner(model, config, evaluator, strength=strength, initial_scale=0.5)
            pruner.compress(max_epochs=1)
            found.append({n: s["weight"].target.detach() for n, s in pruner._target_spaces.items()
                          if "bn" in n or "norm" in n})  # fmt: skip
            streams = {
                n: m.weight.detach() for n, m in model.named_modules()
                if isinstance(m, nn.BatchNorm2d) and not hasattr(m, "_nni_wrapper")
            }  # fmt: skip
        assert len(found[0]) == 3
        assert len(streams) >= 3
        for name in found[0]:
            assert (found[1][name] < found[0][name]).all()
            assert (found[1][name] < 0.5).all()
        assert all((scale > 0.9).all() for scale in streams.values())

    def test_filters_stand_in_where_there_is_no_norm(self, tmp_path):
        for penalty in ("proximal", "subgradient"):
            torch.manual_seed(0)
            model = nn.Sequential(
                conv(1, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(8, 10),
            )  # fmt: skip
            model[2].weight.data[3] *= 1e-3
            model[2].weight.data[5] = 0
            before = model[2].weight.detach().flatten(1).norm(dim=1)
            config = [{"op_names": ["2"], "sparse_ratio": 0.5}]
            evaluator = loop_evaluator(
                model, tmp_path / penalty, lr=0.01, momentum=0.0, weight_decay=0.0
            )
            pruner = SlimmingPruner(model, config, evaluator, strength=1.0, penalty=penalty)
            pruner.compress(max_epochs=1)
            after = pruner._target_spaces["2"]["weight"].target.detach().flatten(1).norm(dim=1)
            assert after.isfinite().all()
            rows = [0, 1, 2, 4, 6, 7]
            assert (after[rows] < before[rows]).all()
            if penalty == "proximal":
                assert after[3] == 0
            untouched = model[0].weight
            assert untouched.flatten(1).norm(dim=1).min() > 0

    def test_strength_follows_the_cost_of_a_channel(self):
        model = chain([1.0] * 8, [1.0] * 4, [1.0] * 16)
        made = {}
        for measure in (None, "params", "macs"):
            pruner = SlimmingPruner(
                model, [{**CONVS[0], "sparse_ratio": 0.5}],
                dummy_input=torch.zeros(1, 3, 8, 8), strength=1.0, weigh_by=measure,
            )  # fmt: skip
            made[measure] = pruner._relative_cost()
            sizes = [s.size for s in pruner.sets]
            pruner.unwrap_model()
        assert made[None] == [1.0, 1.0, 1.0]
        # Own filter and norm, and a column of each filter of the next layer.
        cost = [9 * 3 + 2 + 9 * 4, 9 * 8 + 2 + 9 * 16, 9 * 4 + 2 + 9 * 4]
        mean = sum(c * n for c, n in zip(cost, sizes, strict=True)) / sum(sizes)
        assert made["params"] == pytest.approx([c / mean for c in cost])
        assert made["macs"][1] > made["macs"][0] > 0

    def test_the_state_of_a_split_optimizer_survives(self, tmp_path):
        """Scales have a group of their own; the learning rate is looked up after a resume too."""

        class Stop(Exception):
            pass

        def run(folder, stop_at=None, resume=False):
            torch.manual_seed(0)
            model = nn.Sequential(
                conv(1, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                nn.Flatten(), nn.Linear(8, 10),
            )  # fmt: skip
            pruner = SlimmingPruner(
                model, [{"op_names": ["0"], "sparse_ratio": 0.5}],
                loop_evaluator(model, folder, 3, resume=resume), strength=0.05,
            )  # fmt: skip
            after = pruner.after_step

            def stopping():
                after()
                if pruner.clock.step == stop_at:
                    raise Stop

            pruner.after_step = stopping
            pruner.compress(max_epochs=3)
            return scales(pruner, "1")

        whole = run(tmp_path / "whole")
        with pytest.raises(Stop):
            run(tmp_path / "cut", stop_at=8)
        assert torch.equal(run(tmp_path / "cut", resume=True), whole)
        assert (whole < 0.9).all()


# -- what follows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "gain"), [(0.4, [0.2, -0.4]), (-0.3, [0.0, 0.0])])
def test_the_shift_of_a_cut_channel_can_be_folded(shift, gain):
    """Without the mask on its shift, a channel of scale 0 emits relu(shift) everywhere."""
    model = nn.Sequential(
        conv(3, 2, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1)
    ).eval()
    model[1].weight.data = torch.tensor([1.0, 0.0])
    model[1].bias.data = torch.tensor([0.1, shift])
    model[3].weight.data[:, 1, 0, 0] = torch.tensor([0.5, -1.0])
    before = model[3].bias.detach().clone()
    example = torch.randn(2, 3, 8, 8)
    expected = model(example)
    pruner = SlimmingPruner(model, [{"op_names": ["0"], "sparse_ratio": 0.5}], dummy_input=example)
    masks = pruner.compress()[1]
    pruner.unwrap_model()
    masks["1"]["bias"][:] = 1
    small = ModelSpeedup(model, example, masks, constants="fold").speedup_model()
    assert small[0].out_channels == 1
    assert torch.allclose(small[3].bias - before, torch.tensor(gain), atol=1e-6)
    assert torch.allclose(small(example), expected, atol=1e-6)


@pytest.mark.slow
def test_several_passes(tmp_path):
    torch.manual_seed(0)
    model = create_model("resnet8b", width=0.5, in_channels=1)
    example = torch.zeros(1, 1, 8, 8)
    config = [{**CONVS[0], "global_group_id": 0, "sparse_ratio": 0.3, "min_channels": 2}]
    sizes = [sum(p.numel() for p in model.parameters())]
    for number in range(2):
        evaluator = loop_evaluator(model, tmp_path / str(number), 2)
        pruner = SlimmingPruner(model, config, evaluator, strength=1e-3, coupling="max")
        masks = pruner.compress(max_epochs=2)[1]
        pruner.unwrap_model()
        model = ModelSpeedup(model, example, masks).speedup_model()
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert sizes[2] < 0.75 * sizes[1] < 0.75**2 * sizes[0]
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"penalty": "proxmal"}, "unknown penalty 'proxmal'; did you mean 'proximal'"),
        ({"weigh_by": "latency"}, "unknown cost 'latency'"),
        ({"strength": -1e-4}, r"strength: -0.0001 is not allowed \(a number from 0\)"),
        ({"strength": "1e-4"}, "strength: '1e-4' is not allowed"),
        ({"strength": None}, "strength: None is not allowed"),
        ({"initial_scale": True}, "initial_scale: True is not allowed"),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(ConfigError, match=said):
        cut(chain(*SCALES), [{**CONVS[0], "sparse_ratio": 0.5}], **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "params", "macs"),
    [
        ([20, 61, 109, 128, 231, 192, 116, 77, *[26] * 5], 1_188_861, 116.41),
        ([26, 61, 116, 128, 244, 256, 231, 282, 103, 77, 77, 77, 128], 2_708_985, 169.37),
    ],
)
def test_the_published_widths_of_vgg16_have_the_published_size(widths, params, macs):
    net, image = create_model("vgg16"), torch.zeros(1, 3, 32, 32)
    assert count(net, image).macs / 1e6 == pytest.approx(313.20, abs=5e-3)
    convs = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    config = [
        {"op_names": [name], "sparse_ratio": 1.0, "min_channels": width}
        for name, width in zip(convs, widths, strict=True)
    ]
    pruner = SlimmingPruner(net, config, dummy_input=image)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    found = count(ModelSpeedup(net, image, masks, verify=False).speedup_model(), image)
    assert found.params == params
    assert found.macs / 1e6 == pytest.approx(macs, abs=5e-3)


@pytest.mark.slow
def test_under_union_a_norm_that_is_below_the_threshold_whole_votes_for_all_its_channels():
    """The published rule: no voter saves its own largest channel first."""
    torch.manual_seed(7301)
    net = create_model("resnet56").eval()
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            scale = 1e-3 if name.endswith("bn2") else 1.0
            module.weight.data = torch.rand_like(module.weight) * scale
    net.bn1.weight.data[:12] *= 1e-3
    pruner = SlimmingPruner(
        net,
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.6, "global_group_id": "all"}],
        dummy_input=torch.zeros(1, 3, 32, 32),
        coupling="union",
    )
    _, masks = pruner.compress()
    kept = [int(masks[n]["weight"].sum()) for n in ("bn1", "layer2.0.bn2", "layer3.0.bn2")]
    assert kept == [4, 5, 6]
