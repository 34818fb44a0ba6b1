"""The dry run says what the real run does."""

import pytest
import torch
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.diagnose import diagnose
from nni_gconv.profiling import count
from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.training.zoo import create_model

X = torch.zeros(1, 3, 32, 32)


def test_the_price_is_the_real_one():
    model = create_model("resnet8")
    found = diagnose(model, X, ratio=0.5)
    dense = count(model, X)
    assert (found.params, found.macs) == (dense.params, dense.macs)
    pruner = FPGMPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], dummy_input=X)
    masks = pruner.compress()[1]
    pruner.unwrap_model()
    small = count(ModelSpeedup(model, X, masks).speedup_model(), X)
    assert found.macs_ratio == pytest.approx(small.macs / dense.macs, abs=1e-12)
    assert found.params_ratio == pytest.approx(small.params / dense.params, abs=1e-12)
    assert found.least_macs_ratio < found.macs_ratio < 1


def test_sets_that_stay_say_why_and_save_nothing():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.c(self.a(x).softmax(1) + self.b(x).softmax(1))

    found = diagnose(Mixed(), X)
    by_layer = {row.layers[0]: row for row in found.sets}
    assert "softmax over channels at " in by_layer["a"].reason
    assert by_layer["a"].macs_saved == 0
    assert found.macs_ratio == 1
    assert found.table().row_count == 0
    kept = [line for line in found.lines() if line.startswith("stays: ")]
    assert len(kept) == 2
    assert kept[0].startswith("stays: a, b (8 channels): softmax over channels at ")
