"""What is said of a layer besides its width stays as it was when it is cut."""

import pytest
import torch
import torch.nn.functional as F
from speedup_nets import X, conv, middle, shapes
from speedup_tools import outputs_of, randn, rows_off, shrink
from torch import nn

from nni_gconv import FPGMPruner, ModelSpeedup


@pytest.mark.parametrize(
    ("layer", "dummy", "wanted"),
    [
        (nn.Conv2d, randn(2, 3, 6, 6), torch.channels_last),
        (nn.Conv3d, randn(2, 3, 4, 4, 4), torch.channels_last_3d),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_memory_format(layer, dummy, wanted, last):
    net = nn.Sequential(layer(3, 8, 3), nn.ReLU(), layer(8, 4, 1)).double().eval()
    net = net.to(memory_format=wanted) if last else net
    shrink(net, dummy, rows_off(net, "0", [1, 4]), verify=True)
    assert net[0].weight.shape[0] == 6
    assert net[0].weight.is_contiguous(memory_format=wanted) == last
    assert net[0].weight.is_contiguous() != last


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_type_gradient_mode_and_hooks(dtype):
    net = middle(lambda s, x: s.bn(s.a(x)), a=conv(8, 8), bn=nn.BatchNorm2d(8)).to(dtype)
    net.a.weight.requires_grad_(False)
    net.train()
    net.bn.eval()
    seen = []
    net.a.register_forward_hook(lambda *_: seen.append("after"))
    net.a.register_forward_pre_hook(lambda *_: seen.append("before"))
    masks = {
        n: {t: m.to(dtype) for t, m in targets.items()}
        for n, targets in rows_off(net, "a", [0, 5], "bn").items()
    }
    ModelSpeedup(net, X.to(dtype), masks).speedup_model()
    assert shapes(net, "a", "head") == [(6, 8), (4, 6)]
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert not net.a.weight.requires_grad
    assert net.a.bias.requires_grad
    assert (net.training, net.a.training, net.bn.training) == (True, True, False)
    seen.clear()
    outputs_of(net.eval(), X.to(dtype))
    assert seen == ["before", "after"]


# -- layers that are selected and that nothing can be said of ------------------------------------


class MixedConv(nn.Conv2d):
    """Filters that are orthogonal to one another."""

    def forward(self, x):
        half = self.weight.flatten(1)
        mixed = torch.linalg.matrix_exp(half - half.T).view_as(self.weight)
        return F.conv2d(x, mixed, self.bias)


def test_selected_layers_whose_weights_are_computed_are_named():
    net = middle(
        lambda s, x: s.c(s.normed(s.mixed(x))),
        mixed=MixedConv(8, 8, 1),
        normed=nn.utils.parametrizations.weight_norm(conv(8, 8)),
        c=conv(8, 8),
    )
    config = [{"op_names": ["stem", "mixed", "c"], "sparse_ratio": 0.5}]
    pruner = FPGMPruner(net, config, dummy_input=X)
    said = "it computes its weight, of a MixedConv, at "
    assert pruner.skipped["mixed"].startswith(said)
    assert "read by mixed, whose weights are computed" in pruner.skipped["stem"]
    assert [s.name for s in pruner.sets] == ["c"]
    assert any("mixed" in n for n in pruner.coupling.channels.computed)


def test_a_layer_that_does_not_run_is_named():
    net = middle(lambda s, x: x, spare=conv(8, 8))
    config = [{"op_names": ["stem", "spare"], "sparse_ratio": 0.5}]
    pruner = FPGMPruner(net, config, dummy_input=X)
    assert pruner.skipped["spare"] == "it is not used by the forward"
