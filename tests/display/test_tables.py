"""Tables that print shows."""

import torch
from torch import nn

from nni_gconv import FPGMPruner, GroupConvPruner, ModelSpeedup, profile


def test_print_shows_the_tables_of_pruners_speedups_and_profiles():
    x = torch.randn(1, 4, 8, 8)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
    assert "│ 0     │ Conv2d │" in str(profile(net, x))
    pruner = FPGMPruner(net, [{"op_names": ["0"], "sparse_ratio": 0.5}], dummy_input=x)
    _, masks = pruner.compress()
    assert "│ 0      │ 8        │ 4    │" in str(pruner.table())
    pruner.unwrap_model()
    speedup = ModelSpeedup(net, x, masks)
    speedup.speedup_model()
    shown = str(speedup.report())
    assert "│ 2     │ Conv2d │ 16 × 8 │ 16 × 4 │" in shown
    assert "masked and small model differ by" in shown
    assert shown.startswith(str(speedup.report().table()))
    assert "16 × 4" in speedup.report()._repr_html_()
    grouped = GroupConvPruner(net, [{"op_names": ["2"], "num_groups": 4}], dummy_input=x)
    assert "│ 2     │ 16      │ 4        │ 4      │" in str(grouped.table())


def test_brackets_in_notes_are_no_markup():
    from nni_gconv.display import as_text

    assert as_text("note: [bold]x[/]") == "note: [bold]x[/]"
