"""The dry run says what the real run does."""

import json

import pytest
import torch
from torch import nn

from nni_gconv import ModelSpeedup
from nni_gconv.cli import main
from nni_gconv.diagnose import diagnose
from nni_gconv.profiling import count
from nni_gconv.pruning.fpgm import FPGMPruner
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
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.b(self.norm(self.a(x)))

    found = diagnose(Normalised(), X)
    by_layer = {row.layers[0]: row for row in found.sets}
    assert "normalised over channels" in by_layer["a"].reason
    assert by_layer["a"].macs_saved == 0
    assert found.macs_ratio == 1
    assert "normalised over channels" in str(found.table().columns[4]._cells)


def test_the_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["doctor", "resnet8", "--ratio", "0.25", "--json"])
    assert left.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratio"] == 0.25
    assert {row["layers"][0] for row in found["sets"]} >= {"conv1", "layer1.0.conv1", "linear"}
    with pytest.raises(SystemExit) as left:
        main(["doctor", "resnet9"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
