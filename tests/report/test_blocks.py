"""The picture of a partition."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from nni_gconv import partition
from nni_gconv.errors import ConfigError
from nni_gconv.report import plot_blocks


def hidden_blocks():
    rng = np.random.default_rng(0)
    scores = np.kron(np.eye(4), np.ones((4, 6))) * rng.random((16, 24))
    return scores[rng.permutation(16)][:, rng.permutation(24)]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_is_written_whole(tmp_path, suffix):
    scores = hidden_blocks()
    layers = {
        "a": (scores, partition(scores, 4)),
        "b": (torch.ones(8, 4), partition(torch.ones(8, 4), 2)),
    }
    path = plot_blocks(layers, tmp_path / "new" / f"blocks{suffix}", title="two layers")
    assert path.stat().st_size > 2000
    assert [p.name for p in path.parent.iterdir()] == [f"blocks{suffix}"]


def test_it_says_what_is_kept_and_what_chance_would_keep(tmp_path):
    scores = hidden_blocks()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = plot_blocks({"a": (scores, partition(scores, 4))}, tmp_path / "b.svg").read_text()
    assert "a, 16x24" in text
    assert "4 groups keep 100.0%, chance 25.0%" in text


def test_mistakes(tmp_path):
    part = partition(np.ones((4, 4)), 2)
    with pytest.raises(ConfigError, match="no layer"):
        plot_blocks({}, tmp_path / "b.png")
    with pytest.raises(ConfigError, match=r"scores of shape \(4, 8\), but a partition of \(4, 4"):
        plot_blocks({"a": (np.ones((4, 8)), part)}, tmp_path / "b.png")
    with pytest.raises(ConfigError, match=r"unknown picture format '.bmp'"):
        plot_blocks({"a": (np.ones((4, 4)), part)}, tmp_path / "b.bmp")
    assert not list(tmp_path.iterdir())
