"""The pruner on readers of every kind: of channels that say the same one of each pair goes."""

import copy
from math import nan

import pytest
import torch
from torch import nn

from nni_gconv import SecondOrderPruner
from nni_gconv.errors import BudgetError, ConfigError, DataError


class Net(nn.Module):
    def __init__(self, reader, *, flat=False, beside=0):
        super().__init__()
        self.first, self.reader = nn.Conv2d(3, 8, 3, padding=1), reader
        self.beside = nn.Conv2d(3, beside, 3, padding=1) if beside else None
        self.flat = nn.Flatten() if flat else nn.Identity()
        with torch.no_grad():
            self.first.weight[4:] = self.first.weight[:4]
            self.first.bias[4:] = self.first.bias[:4]

    def forward(self, x):
        y = self.first(x).relu()
        if self.beside is not None:
            y = torch.cat([self.beside(x), y], 1)
        return self.reader(self.flat(y))


READERS = {
    "convolution": lambda: Net(nn.Conv2d(8, 5, 3, stride=2, dilation=2)),
    "flatten": lambda: Net(nn.Linear(8 * 36, 5), flat=True),
    "transposed": lambda: Net(nn.ConvTranspose2d(8, 5, 3, stride=2)),
    "concat": lambda: Net(nn.Conv2d(11, 5, 3), beside=3),
}


@pytest.mark.parametrize("kind", READERS)
def test_one_of_each_pair_goes(kind):
    torch.manual_seed(0)
    net, x = READERS[kind]().eval(), torch.randn(400, 3, 6, 6)
    config = [{"op_names": ["first"], "sparse_ratio": 0.5}]
    pruner = SecondOrderPruner(net, config, calibration=x, dummy_input=x[:1])
    kept = pruner.compress()[1]["first"]["bias"].bool()
    assert bool((kept[:4] ^ kept[4:]).all())


class TestBadInput:
    """One line each, and the model as it was; or what happens is defined."""

    @pytest.fixture
    def net(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))

    @pytest.fixture
    def fails(self, net):
        """Check that the choice, refitted or not, ends in this line and changes nothing."""

        def check(kind, words, images):
            before = copy.deepcopy(net.state_dict())
            with pytest.raises(kind, match=words) as failure:
                pruner(net, images).compress()
            assert "\n" not in str(failure.value)
            after = {n.replace("_nni_wrapper.", ""): t for n, t in net.state_dict().items()}
            assert all(torch.equal(t, after[n]) for n, t in before.items())
            assert net.training

        return check

    def test_no_calibration(self, fails):
        fails(ConfigError, "calibration", None)

    @pytest.mark.parametrize("images", [[], [torch.zeros(1, 3, 6, 6)]], ids=["none", "one"])
    def test_no_images(self, fails, images):
        fails(DataError, r"calibration: [01] images; at least 2 are needed", images)

    @pytest.mark.parametrize("shape", [(3, 9, 9), (4, 6, 6)], ids=["size", "channels"])
    def test_images_of_another_size(self, fails, shape):
        words = rf"calibration: the model does not run on images of shape \({shape[0]}, "
        fails(DataError, words, torch.randn(8, *shape))

    def test_images_of_two_sizes(self, fails):
        two = [torch.zeros(2, 3, 6, 6), torch.zeros(2, 3, 7, 7)]
        fails(DataError, r"images of shape \(3, 6, 6\) and of shape \(3, 7, 7\)", two)

    def test_images_that_are_not_finite(self, fails):
        fails(DataError, "batch 0 holds numbers that are not finite", torch.full((4, 3, 6, 6), nan))

    def test_activations_that_are_not_finite(self, net, fails):
        with torch.no_grad():
            net[0].weight[2] = 3e38  # finite, and what it says is not
        fails(DataError, r"what 3\.weight reads is not finite", torch.randn(8, 3, 6, 6))

    def test_labels_are_not_asked_for(self, net):
        masks = pruner(net, [torch.randn(8, 3, 6, 6)]).compress()[1]
        assert int(masks["0"]["bias"].sum()) == 4

    def test_dead_channels_go_first_and_nothing_is_lost(self, net):
        dead = [1, 2, 5, 6]
        with torch.no_grad():
            net[0].weight[dead] = net[0].bias[dead] = 0
        x = torch.randn(32, 3, 6, 6)
        before = net.eval()(x).detach()
        chosen = pruner(net, x, reconstruct=True)
        kept = chosen.compress()[1]["0"]["bias"].bool()
        assert (~kept).nonzero()[:, 0].tolist() == dead
        chosen.unwrap_model()
        assert torch.allclose(net(x), before, atol=1e-5)

    def test_fewer_images_than_channels(self, net):
        """Two images of one place each: moments of rank one for 128 columns."""
        masks = pruner(net, torch.randn(2, 3, 6, 6), reconstruct=True).compress()[1]
        assert int(masks["0"]["bias"].sum()) == 4
        assert all(bool(p.isfinite().all()) for p in net.parameters())


def pruner(net, images, **options):
    config = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    given = {} if images is None else {"calibration": images}
    return SecondOrderPruner(net, config, dummy_input=torch.zeros(1, 3, 6, 6), **given, **options)


class TestStreams:
    """What several layers add up to stays whole where the others meet the budget easily."""

    class Block(nn.Module):
        def __init__(self, inner, middle=None):
            super().__init__()
            self.first, self.last = nn.Conv2d(8, inner, 1), nn.Conv2d(inner, 8, 3, padding=1)
            self.middle = middle or nn.Identity()

        def forward(self, x):
            return x + self.last(self.middle(self.first(x).relu()).relu())

    @pytest.fixture
    def cut(self):
        """Widths of the stream and of the inner layers after a cut."""

        def widths(macs, middle=None, **options):
            torch.manual_seed(0)
            blocks = [self.Block(16, middle), self.Block(16)]
            net = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.Conv2d(8, 5, 3)).eval()
            layers = [{"op_types": ["Conv2d"], "exclude_op_names": ["3"]}]
            x, given = torch.randn(32, 3, 8, 8), {"budget": {"macs": macs}, **options}
            made = SecondOrderPruner(net, layers, calibration=x, dummy_input=x[:1], **given)
            masks = made.compress()[1]
            left = {name: int(targets["bias"].sum()) for name, targets in masks.items()}
            return left["0"], left["1.first"], left["2.first"]

        return widths

    def test_auto(self, cut):
        assert cut(0.5)[0] == 8
        assert cut(0.5, streams="cut")[0] < 8
        stream, *inner = cut(0.2)  # beyond what a quarter of the inner channels comes to
        assert stream < 8 and min(inner) > 2

    def test_only_what_is_dealt_out_by_error(self, cut):
        assert cut(0.5, allocation="uniform")[0] < 8
        assert cut(0.5, allocation="uniform", streams="whole")[0] == 8
        assert cut(0.5, allocation="exact")[0] == 8

    def test_whole(self, cut):
        stream, *inner = cut(0.2, streams="whole")
        assert stream == 8 and max(inner) < 4
        with pytest.raises(BudgetError, match=r"the selected layers allow macs of 0"):
            cut(0.1, streams="whole")

    def test_a_depthwise_layer_makes_no_stream(self, cut):
        depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        stream, *inner = cut(0.5, depthwise)
        assert stream == 8 and max(inner) < 16
