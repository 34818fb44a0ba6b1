"""ProxSGD against hand-computed steps, and as an optimizer among torch's."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from nni_gconv import ProxSGD
from nni_gconv.errors import ConfigError
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.loop import fit
from nni_gconv.training.optim import make_optimizer
from nni_gconv.training.proxsgd import gain_scale, group_soft_threshold
from nni_gconv.training.settings import TrainSettings

X = [[1.0, 2.0, 2.0, 0.0], [0.1, 0.0, 0.1, 0.0]]
G = [[0.2, -0.1, 0.0, 0.1], [0.02, 0.02, -0.02, 0.02]]


def parameter(values, grad=None, dtype=torch.float64):
    made = nn.Parameter(torch.tensor(values, dtype=dtype))
    if grad is not None:
        made.grad = torch.tensor(grad, dtype=dtype)
    return made


def close(found, expected):
    return torch.allclose(
        found.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6
    )


def conv_net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(),
        nn.Linear(4 * 36, 3),
    ).to(dtype)  # fmt: skip


def loaders():
    """Three steps an epoch."""
    data = DataSettings(
        name="synthetic", batch_size=16, image_size=8, num_classes=3, train_size=60, test_size=8
    )
    return make_loaders(load_data(data, seed=3), data, seed=3, device="cpu")


def groups(net, mu=0.05):
    """Gains for weights of convolutions, none for the rest."""
    convs = [m.weight for m in net if isinstance(m, nn.Conv2d)]
    rest = [p for p in net.parameters() if all(p is not c for c in convs)]
    return [{"params": convs, "mu": mu}, {"params": rest}]


def train(net, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=generator).to(dtype)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return net


def reference_step(x, g, v, r, t, *, lr, rho, beta, eps, mu, normalization, adaptive):
    """The update as it is written down, a filter at a time."""
    for f in range(len(x)):
        v[f] = (1 - rho) * v[f] + rho * g[f]
        r[f] = beta * r[f] + (1 - beta) * g[f] * g[f]
        tau = (
            ((r[f] / (1 - beta**t)).sqrt() + eps).mean()
            if adaptive
            else torch.ones((), dtype=x.dtype)
        )
        if not mu:
            x[f] = x[f] - lr * v[f] / tau
            continue
        size = x[f].numel()
        scale = {"none": 1.0, "mul": math.sqrt(size), "div": 1 / math.sqrt(size)}[normalization]
        target = x[f] - v[f] / tau
        kept = max(0.0, 1 - float(mu / tau * scale / target.norm()))
        x[f] = x[f] + lr * (kept * target - x[f])


class TestSoftThreshold:
    def test_vectors(self):
        filters = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.2]])
        assert close(group_soft_threshold(filters, 1.0), [[2.4, 3.2], [0, 0], [0, 0]])
        assert torch.equal(group_soft_threshold(filters[:1], 5.0), torch.zeros(1, 2))
        assert torch.equal(group_soft_threshold(filters, 0.0), filters)

    def test_zero_filters_stay_zero_with_and_without_gain(self):
        for gain in (0.0, 1.0, 1e30):
            assert torch.equal(group_soft_threshold(torch.zeros(2, 3), gain), torch.zeros(2, 3))

    def test_it_is_the_proximal_point(self):
        torch.manual_seed(0)
        filters = torch.randn(5, 2, 3, 3, dtype=torch.float64)
        gain = torch.tensor([0.0, 0.5, 1.0, 2.0, 9.0], dtype=torch.float64)

        def objective(p):
            return (gain * p.flatten(1).norm(dim=1)).sum() + (p - filters).square().sum() / 2

        best = group_soft_threshold(filters, gain)
        assert best.shape == filters.shape
        for _ in range(20):
            assert objective(best) < objective(best + 0.01 * torch.randn_like(best))

    def test_scale(self):
        assert gain_scale(4, "div") == 0.5
        with pytest.raises(ConfigError, match=r"normalization 'dvi'.*div"):
            gain_scale(4, "dvi")


class TestVectors:
    def test_two_steps_div(self):
        x = parameter(X, G)
        optimizer = ProxSGD([{"params": x, "mu": 0.01}])
        optimizer.step()
        assert close(
            x,
            [
                [0.998210745, 2.000861052, 1.999973139, -0.000887913],
                [0.099210770, -0.000775384, 0.100761537, -0.000775384],
            ],
        )
        x.grad /= 2
        optimizer.step()
        assert close(
            x,
            [
                [0.996851212, 2.001494797, 1.999936323, -0.001558475],
                [0.098661919, -0.001301238, 0.101264396, -0.001301238],
            ],
        )

    @pytest.mark.parametrize(
        ("normalization", "row", "expected"),
        [
            ("none", 0, [0.998221489, 2.000822104, 1.999946278, -0.000875825]),
            ("mul", 1, [0.099543080, -0.000401536, 0.100346151, -0.000401536]),
        ],
    )
    def test_other_normalizations(self, normalization, row, expected):
        x = parameter(X, G)
        ProxSGD([{"params": x, "mu": 0.01}], normalization=normalization).step()
        assert close(x[row], expected)

    @pytest.mark.parametrize("mu", [None, 0, "absent"])
    def test_without_a_gain_a_vector_moves_element_by_element(self, mu):
        x = parameter([1.0, -2.0], [0.5, -0.1])
        group = {"params": x} | ({} if mu == "absent" else {"mu": mu})
        ProxSGD([group]).step()
        assert close(x, [0.9991, -1.9991])

    def test_a_dead_filter_wakes_when_its_gradient_outgrows_the_gain(self):
        # v is 0.9 g at the first step: |v| is 0.02 and 0.03, the gain 0.05 / sqrt(4) = 0.025.
        g = [[0.02 / 0.9, 0, 0, 0], [0, 0.03 / 0.9, 0, 0]]
        x = parameter([[0.0] * 4] * 2, g)
        ProxSGD([{"params": x, "mu": 0.05}], adaptive=False).step()
        assert torch.equal(x[0], torch.zeros(4, dtype=torch.float64))
        assert torch.allclose(
            x[1], torch.tensor([0, -0.005e-3, 0, 0], dtype=torch.float64), rtol=1e-6, atol=1e-15
        )

    def test_a_zero_filter_without_gradient_stays_zero(self):
        for mu in (0.0, 0.1):
            x = parameter([[0.0] * 4, [1.0] * 4], [[0.0] * 4] * 2, torch.float32)
            optimizer = ProxSGD([{"params": x, "mu": mu}])
            for _ in range(3):
                optimizer.step()
            assert torch.equal(x[0], torch.zeros(4))
            assert bool(x.isfinite().all())


class TestUpdate:
    @pytest.mark.parametrize("normalization", ["none", "mul", "div"])
    @pytest.mark.parametrize("adaptive", [True, False])
    @pytest.mark.parametrize("mu", [None, 0.02])
    def test_many_steps_equal_the_formula(self, normalization, adaptive, mu):
        torch.manual_seed(0)
        shapes = [(4, 3, 3, 3), (6, 3, 3, 3), (5, 2), (7,), (2, 27), ()]
        options = {"normalization": normalization, "adaptive": adaptive}
        values = [torch.randn(s, dtype=torch.float64) * 0.3 for s in shapes]
        params = [nn.Parameter(v.clone()) for v in values]
        optimizer = ProxSGD([{"params": params, "mu": mu}], lr=0.1, momentum=0.7, beta=0.9,
                            **options)  # fmt: skip
        flat = [v.reshape(len(v) if v.dim() else 1, -1).clone() for v in values]
        memory = [(torch.zeros_like(x), torch.zeros_like(x)) for x in flat]
        for t in range(1, 8):
            for p, x, (v, r) in zip(params, flat, memory, strict=True):
                p.grad = torch.randn_like(p)
                reference_step(
                    x, p.grad.reshape(x.shape), v, r, t, lr=0.1, rho=0.7, beta=0.9, eps=1e-8,
                    mu=mu, **options,
                )  # fmt: skip
            optimizer.step()
        for p, x in zip(params, flat, strict=True):
            assert torch.allclose(p.detach().reshape(x.shape), x, rtol=1e-12, atol=1e-14)

    def test_memory_format_and_filter_dim_do_not_change_the_numbers(self):
        torch.manual_seed(0)
        weight, grad = torch.randn(2, 5, 4, 3, 3).double()
        plain = nn.Parameter(weight.clone())
        last = nn.Parameter(weight.clone(memory_format=torch.channels_last))
        turned = nn.Parameter(weight.transpose(0, 1).contiguous())
        odd = nn.Parameter(weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0))
        assert odd.stride() not in (plain.stride(), last.stride())
        optimizer = ProxSGD(
            [
                {"params": [plain, last, odd], "mu": 0.3},
                {"params": turned, "mu": 0.3, "filter_dim": 1},
            ],
            lr=0.1,
        )
        for _ in range(3):
            for p in (plain, last, odd):
                p.grad = grad.clone()
            turned.grad = grad.transpose(0, 1)
            optimizer.step()
        assert not torch.equal(plain, weight)
        for p in (last, turned.transpose(0, 1), odd):
            assert torch.allclose(p, plain, rtol=1e-13)

    def test_parameters_join_late_and_pause(self):
        """Bias correction counts the steps of each parameter."""
        one, two = parameter([[1.0, 2.0]], [[0.1, 0.2]]), parameter([[1.0, 2.0]])
        optimizer = ProxSGD([one, two], lr=0.1)
        optimizer.step()
        assert close(two, [[1, 2]])
        moved = one.detach().clone()
        one.grad, two.grad = None, torch.tensor([[0.1, 0.2]], dtype=torch.float64)
        optimizer.step()
        assert torch.equal(one, moved)
        assert torch.equal(two, moved)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_has_no_nan(self, dtype):
        x = parameter([[1.0, 2.0], [0.0, 0.0]], [[0.1, 0.2], [0.0, 0.0]], dtype)
        optimizer = ProxSGD([{"params": x, "mu": 0.01}], lr=0.1)
        plain = parameter([1.0, 0.0], [0.0, 0.0], dtype)
        optimizer.add_param_group({"params": plain})
        optimizer.step()
        assert x.dtype == dtype
        assert close(x[1], [0, 0])
        assert close(plain, [1, 0])
        assert bool((x[0] < torch.tensor([1.0, 2.0])).all())


class TestExactZeros:
    def run(self, steps=400, **options):
        """One filter without use, one that is needed."""
        x = parameter([[0.2, 0.1], [0.5, 0.5]])
        optimizer = ProxSGD([{"params": x, "mu": 0.02}], lr=0.02, **options)
        for _ in range(steps):
            noise = 0.001 * (-1.0) ** torch.arange(2, dtype=torch.float64)
            x.grad = torch.stack([noise, x[1].detach() - 1.0])
            optimizer.step()
        return x.detach(), optimizer

    def test_filters_that_would_only_decay_become_zero(self):
        decayed, _ = self.run()
        assert 0 < decayed[0].norm() < 1e-3
        exact, _ = self.run(exact_zeros=True)
        assert torch.equal(exact[0], torch.zeros(2, dtype=torch.float64))
        assert torch.allclose(exact[1], decayed[1])

    def test_no_filter_jumps_from_afar(self):
        """A proximal point at zero is not enough: one step would throw the filter away."""
        x = parameter([[3.0, 4.0]], [[3.0, 4.0]])
        optimizer = ProxSGD([{"params": x, "mu": 100.0}], adaptive=False, exact_zeros=True)
        optimizer.step()
        assert close(x, [[3 * 0.999, 4 * 0.999]])

    def test_the_border_is_the_zero_of_a_proximal_gradient_step(self):
        # Without a gradient the step of length lr reaches lr gain = 0.1 * 0.5 / sqrt(1).
        x = parameter([[0.0501], [0.0499]], [[0.0], [0.0]])
        ProxSGD([{"params": x, "mu": 0.5}], lr=0.1, adaptive=False, exact_zeros=True).step()
        assert close(x, [[0.0501 * 0.9], [0.0]])
        assert not x[1].any()

    def test_small_gradients_make_no_filter_jump(self):
        """An adaptive gain grows as gradients shrink; the way to zero stays that of a step."""
        x = parameter([[3.0, 4.0], [0.1, 0.09], [0.1, 0.11]], [[1e-6, 1e-6]] * 3)
        ProxSGD([{"params": x, "mu": 1.0}], lr=0.1, exact_zeros=True).step()
        assert close(x, [[2.7, 3.6], [0.0, 0.0], [0.09, 0.099]])
        assert not x[1].any()

    def test_a_filter_that_passes_by_zero_goes_on(self):
        """Here a step of length lr ends at zero, the proximal point lies beyond it."""
        x = parameter([[0.1]], [[1 / 0.9]])
        ProxSGD([{"params": x, "mu": 0.5}], lr=0.1, adaptive=False, exact_zeros=True).step()
        assert close(x, [[0.05]])

    def test_zero_is_not_the_end(self):
        x, optimizer = self.run(exact_zeros=True)
        x = optimizer.param_groups[0]["params"][0]
        x.grad = torch.tensor([[-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
        optimizer.step()
        assert bool((x[0] > 0).all())


class TestOptimizer:
    def test_training_works(self):
        net = conv_net()
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        optimizer = ProxSGD(net.parameters(), lr=0.01)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), torch.arange(16) % 3)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 4

    def test_state_survives_a_file(self):
        net = conv_net()
        optimizer = ProxSGD(groups(net), lr=0.01)
        train(net, optimizer, 3)
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other = conv_net(seed=5)
        other.load_state_dict(saved["net"])
        again = ProxSGD(groups(other, mu=9.0), lr=1.0)
        again.load_state_dict(saved["optimizer"])
        assert again.param_groups[0]["mu"] == 0.05
        train(net, optimizer, 3, seed=2)
        train(other, again, 3, seed=2)
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)

    def test_two_runs_are_equal_bit_for_bit(self):
        runs = []
        for _ in range(2):
            net = conv_net()
            runs.append(train(net, ProxSGD(groups(net), lr=0.01, exact_zeros=True), 5))
        for p, q in zip(*[net.parameters() for net in runs], strict=True):
            assert torch.equal(p, q)

    def test_a_deep_copy_goes_on_alone(self):
        net = conv_net()
        optimizer = ProxSGD(groups(net))
        train(net, optimizer, 2)
        twin = copy.deepcopy((net, optimizer))
        train(net, optimizer, 2)
        train(*twin, 2)
        for p, q in zip(net.parameters(), twin[0].parameters(), strict=True):
            assert torch.equal(p, q)

    def test_settings_of_a_group_override_the_optimizers(self):
        x, y = parameter([[1.0, 2.0]], [[0.1, 0.2]]), parameter([[1.0, 2.0]], [[0.1, 0.2]])
        ProxSGD(
            [{"params": x, "lr": 0.5, "adaptive": False, "momentum": 1.0}, {"params": y}]
        ).step()
        assert close(x, [[0.95, 1.9]])
        assert close(y, [[1 - 1e-3 * 0.09 / 0.15, 2 - 1e-3 * 0.18 / 0.15]])

    def test_learning_rates_can_be_scheduled(self):
        x = parameter([[1.0, 2.0]], [[0.1, 0.2]])
        optimizer = ProxSGD([{"params": x, "mu": 0.01}], lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
        optimizer.step()
        scheduler.step()
        moved = x.detach().clone()
        optimizer.step()
        assert torch.equal(x, moved)

    def test_closures(self):
        x = parameter([[1.0, 2.0]])
        optimizer = ProxSGD([x])

        def closure():
            optimizer.zero_grad()
            loss = x.square().sum()
            loss.backward()
            return loss

        assert float(optimizer.step(closure)) == 5
        assert float(x.detach().square().sum()) < 5
        optimizer.zero_grad()
        assert optimizer.step() is None

    def test_sparse_gradients_are_refused(self):
        layer = nn.Embedding(4, 2, sparse=True)
        layer(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match="sparse"):
            ProxSGD(layer.parameters()).step()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"lr": -1.0}, r"group 0: lr: -1\.0 is not allowed \(a number from 0\)"),
            ({"momentum": 0.0}, r"momentum: 0\.0 .*above 0, up to 1"),
            ({"momentum": 1.1}, "momentum: 1.1"),
            ({"beta": 1.0}, r"beta: 1\.0 .*below 1"),
            ({"eps": -1e-8}, "eps"),
            ({"normalization": "mull"}, "normalization 'mull'.*mul"),
            ({"mu": -0.1}, r"group 0: mu: -0\.1"),
            ({"mu": math.nan}, "mu: nan"),
            ({"weight_decay": 1e-4}, "weight_decay: ProxSGD has none"),
            ({"gain": 0.1}, "group 0: gain: the gain of a group is called mu"),
            ({"betas": (0.9, 0.999)}, "betas: ProxSGD has momentum and beta"),
            ({"mu": 0.1, "lr": 1.5}, r"lr: 1\.5 steps beyond the proximal point"),
            ({"lr": "fast"}, r"lr: 'fast' is not allowed \(a number from 0\)"),
            ({"momentum": None}, "momentum: None is not allowed"),
            ({"adaptive": "no"}, r"adaptive: 'no' is not allowed \(True or False\)"),
            ({"exact_zeros": 1}, "exact_zeros: 1 is not allowed"),
            ({"mu": "0.1"}, r"mu: '0\.1' is not allowed"),
            ({"mu": True}, "mu: True is not allowed"),
            ({"filter_dim": "a"}, "filter_dim: 'a' is not allowed"),
            ({"filter_dim": 1}, r"filter_dim: 1 is no dimension of a parameter of shape \(1,\)"),
        ],
    )
    def test_what_is_out_of_range_is_said(self, options, said):
        options = dict(options)
        keys = ("mu", "weight_decay", "filter_dim", "gain", "betas")
        own = {k: options.pop(k) for k in keys if k in options}
        with pytest.raises(ConfigError, match=said):
            ProxSGD([{"params": [parameter([1.0]), parameter([2.0])], **own}], **options)

    def test_other_keys_of_a_group_are_its_own(self):
        groups = [{"params": [parameter([1.0])], "name": "stem", "lr_scale": 0.5}]
        assert ProxSGD(groups).param_groups[0]["name"] == "stem"

    def test_adaptive_from_the_middle_on_is_said(self):
        weight = parameter([1.0])
        optimizer = ProxSGD([weight], adaptive=False)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.param_groups[0]["adaptive"] = True
        with pytest.raises(ConfigError, match="adaptive: cannot be switched on after the first"):
            optimizer.step()

    def test_a_refused_group_is_not_added(self):
        optimizer = ProxSGD([parameter([1.0])])
        with pytest.raises(ConfigError, match="group 1: lr"):
            optimizer.add_param_group({"params": [parameter([2.0])], "lr": -1})
        assert len(optimizer.param_groups) == 1

    @pytest.mark.slow
    def test_it_needs_no_nni(self):
        code = "import sys, nni_gconv.training.proxsgd; sys.exit('nni' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestRecipe:
    def test_a_recipe_names_it(self):
        settings = TrainSettings(
            optimizer={"name": "ProxSGD", "normalization": "mul", "exact_zeros": True}
        )
        optimizer = make_optimizer(conv_net(), settings)
        assert type(optimizer) is ProxSGD
        given = {"lr": 1e-3, "momentum": 0.9, "beta": 0.999, "adaptive": True}
        given |= {"normalization": "mul", "exact_zeros": True, "mu": None}
        assert given.items() <= optimizer.param_groups[0].items()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"weight_decay": 1e-4}, "weight_decay: ProxSGD has none"),
            ({"momentum": 0}, "momentum: ProxSGD weighs the new gradient"),
            ({"normalization": "dvi"}, "normalization"),
        ],
    )
    def test_what_it_cannot_take_is_said(self, options, said):
        with pytest.raises(ValidationError, match=said):
            TrainSettings(optimizer={"name": "ProxSGD", **options})

    def test_it_resumes_as_it_would_have_gone_on(self, tmp_path):
        settings = TrainSettings(epochs=3, optimizer={"name": "ProxSGD", "lr": 0.01})

        def run(directory, after_step=None, resume=False):
            net = conv_net(seed=3)
            fit(
                net, loaders(), settings, directory=directory, device="cpu", seed=7,
                progress=False, after_step=after_step, resume=resume,
            )  # fmt: skip
            return net

        whole = run(tmp_path / "whole")
        left = iter(range(5))
        with pytest.raises(StopIteration):
            run(tmp_path / "cut", after_step=lambda: next(left))
        for p, q in zip(
            whole.parameters(), run(tmp_path / "cut", resume=True).parameters(), strict=True
        ):
            assert torch.equal(p, q)
