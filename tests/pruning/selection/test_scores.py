"""Scores of filters against hand-computed values and against the definition."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_gconv.pruning.methods.fpgm import FPGMPruner
from nni_gconv.pruning.selection.scores import (
    DISTANCES,
    count,
    distance_sums,
    filter_norms,
    geometric_median_order,
)

FILTERS = torch.zeros(6, 4)
FILTERS[0, 0] = FILTERS[1, 1] = 1
FILTERS[2] = torch.tensor([0.6, 0.6, 0.1, 0])
FILTERS[3] = 0.5
FILTERS[4, 0] = 3
FILTERS[5, 3] = 0.2


def order(scores):
    return torch.argsort(scores, stable=True).tolist()


def by_definition(filters, distance):
    """Sum of distances, one pair at a time."""
    rows = filters.double().numpy()
    sums = np.zeros(len(rows))
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if i == j:
                continue
            if distance == "l1":
                sums[i] += np.abs(a - b).sum()
            elif distance == "l2":
                sums[i] += np.sqrt(((a - b) ** 2).sum())
            else:
                lengths = np.linalg.norm(a) * np.linalg.norm(b)
                sums[i] += 1 - (a @ b / lengths if lengths else 0.0)
    return sums


@pytest.mark.parametrize(
    ("distance", "sums", "ranking"),
    [
        ("l2", (6.162028, 7.324306, 5.465146, 6.218010, 13.290572, 6.840279), [2, 0, 3, 5, 1, 4]),
        ("l1", (8.3, 10.3, 7.9, 10.9, 16.3, 8.9), [2, 0, 5, 1, 3, 4]),
        ("cosine", (2.797753, 3.797753, 2.132492, 2.239233, 2.797753, 4.5), [2, 3, 0, 4, 1, 5]),
    ],
)
def test_distance_sums_of_six_known_filters(distance, sums, ranking):
    found = distance_sums(FILTERS, distance)
    assert found.tolist() == pytest.approx(sums, abs=1e-6)
    # Filters 0 and 4 point the same way: their cosine sums are equal up to rounding.
    assert order(found.round(decimals=6)) == ranking


def test_the_discrete_median_beside_the_true_one():
    """The true geometric median, by Weiszfeld's iteration: same first filter, another second."""
    rows = FILTERS.double()
    median = rows.mean(0)
    for _ in range(10_000):
        weights = 1 / (rows - median).norm(dim=1)
        median = (weights[:, None] * rows).sum(0) / weights.sum()
    known = torch.tensor([0.592737, 0.467391, 0.120722, 0.092142], dtype=torch.float64)
    torch.testing.assert_close(median, known, atol=1e-6, rtol=0)
    distances = (rows - median).norm(dim=1)
    known = torch.tensor([0.6383, 0.8112, 0.1630, 0.5656, 2.4569, 0.7720], dtype=torch.float64)
    torch.testing.assert_close(distances, known, atol=1e-4, rtol=0)
    assert order(distances) == [2, 3, 0, 5, 1, 4]
    assert order(distance_sums(FILTERS, "l2")) == [2, 0, 3, 5, 1, 4]


def test_norms_and_the_order_they_give():
    norms = filter_norms(FILTERS)
    assert norms.tolist() == pytest.approx((1, 1, 0.8544004, 1, 3, 0.2), abs=1e-6)
    assert set(order(norms)[:2]) == {5, 2}
    assert filter_norms(FILTERS, 1).tolist() == pytest.approx((1, 1, 1.3, 2, 3, 0.2), abs=1e-6)


def test_mixed_order_takes_the_smallest_norm_first_and_sums_among_the_rest():
    rest = [0, 1, 2, 3, 4]
    among = torch.zeros(6, dtype=torch.float64)
    among[rest] = distance_sums(FILTERS[rest])
    expected = (5.142225, 6.304502, 4.587650, 5.301495, 10.283913)
    assert among[rest].tolist() == pytest.approx(expected, abs=1e-6)
    small = torch.tensor([False] * 5 + [True])
    scores = geometric_median_order(filter_norms(FILTERS), among, small)
    assert order(scores)[:3] == [5, 2, 0]


def net_of(filters):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(4, len(filters), 1), torch.nn.Conv2d(len(filters), 2, 1)
    )
    net[0].weight.data = filters[:, :, None, None].clone()
    return net


def kept(pruner):
    mask = pruner.compress()[1]["0"]["weight"]
    return mask.flatten(1).any(1).nonzero().flatten().tolist()


def test_the_pruner_takes_the_known_filters():
    config = [{"op_names": ["0"], "sparse_ratio": 1 / 3}]
    assert kept(FPGMPruner(net_of(FILTERS), config)) == [1, 3, 4, 5]
    config = [{"op_names": ["0"], "sparse_ratio": 0.5}]
    mixed = FPGMPruner(net_of(FILTERS), config, norm_ratio=0.2)
    assert kept(mixed) == [1, 3, 4]
    assert kept(FPGMPruner(net_of(FILTERS), config, distance="cosine")) == [1, 4, 5]


def test_a_soft_method_can_leave_the_set_it_chose():
    """Scored on zeroed weights {0, 2} would be chosen for ever."""
    zeroed = FILTERS.clone()
    zeroed[[0, 2]] = 0
    sums = distance_sums(zeroed)
    expected = (5.2, 7.182082, 5.2, 6.562266, 14.814688, 5.342978)
    assert sums.tolist() == pytest.approx(expected, abs=1e-6)
    assert set(order(sums)[:2]) == {0, 2}

    net = net_of(FILTERS)
    pruner = FPGMPruner(net, [{"op_names": ["0"], "sparse_ratio": 1 / 3}])
    assert kept(pruner) == [1, 3, 4, 5]
    weight = pruner._target_spaces["0"]["weight"].target
    # Training moves the masked filters away and two others together.
    weight.data[0], weight.data[2] = weight.data[0] + 40, weight.data[2] - 40
    weight.data[1] = weight.data[3]
    assert kept(pruner) == [0, 2, 4, 5]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("size", "width"), [(1, 3), (2, 1), (7, 5), (33, 20), (9, 2100)])
def test_sums_equal_the_double_loop(distance, size, width):
    generator = torch.Generator().manual_seed(size)
    filters = torch.randn(size, width, generator=generator)
    if size > 6:
        filters[3] = filters[1]  # a duplicate
        filters[5] = 0
        filters[6] = -filters[0]
    expected = by_definition(filters, distance)
    assert distance_sums(filters, distance).numpy() == pytest.approx(expected, rel=1e-10, abs=1e-6)
    # What cancels in float64 is a difference of 1e-13 of the squares.
    doubled = by_definition(filters, distance)
    assert distance_sums(filters.double(), distance).numpy() == pytest.approx(doubled, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=3), min_size=2, max_size=9
    ),
    st.sampled_from(DISTANCES),
)
def test_sums_equal_the_double_loop_with_many_ties_and_zeros(rows, distance):
    filters = torch.tensor(rows)
    expected = by_definition(filters, distance)
    assert distance_sums(filters, distance).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_filters_that_hardly_differ_keep_their_order_in_float32(distance):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 64, generator=generator) * 100
    filters = base + 1e-2 * torch.randn(40, 64, generator=generator)
    assert filters.dtype == torch.float32
    expected = by_definition(filters, distance)
    found = distance_sums(filters, distance)
    assert found.numpy() == pytest.approx(expected, rel=1e-4 if distance == "cosine" else 1e-8)
    assert order(found) == np.argsort(expected, kind="stable").tolist()


def test_duplicates_are_at_no_distance():
    filters = torch.full((50, 300), 0.1) * torch.arange(1, 301)
    assert distance_sums(filters, "l2").tolist() == [0.0] * 50
    assert distance_sums(filters, "l1").abs().max() < 1e-6


def test_half_precision_is_scored_in_full():
    filters = torch.randn(12, 30, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    assert distance_sums(filters).numpy() == pytest.approx(by_definition(filters, "l2"), rel=1e-9)


def test_an_unknown_distance_is_named():
    with pytest.raises(ValueError, match=r"l1, l2, cosine, got 'cos'"):
        distance_sums(FILTERS, "cos")


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        (10, 1 - 0.9, 1),
        (20, 1 - 0.8, 4),
        (64, 1 - 0.9, 6),
        (64, 1 - 0.7, 19),
        (16, 1 - 0.6, 6),
        (16, 0.4, 6),
        (32, 0.4, 13),
        (64, 0.4, 26),
        (64, 0.3, 19),
        (5, 0.5, 2),
        (7, 0.5, 4),
        (8, 0.0, 0),
        (8, 1.0, 8),
    ],
)
def test_counts(size, ratio, expected):
    assert count(size, ratio) == expected


@pytest.mark.slow
def test_pure_functions_import_without_nni():
    modules = ["selection.scores", "methods.slimming.scales", "schedule", "selection.allocation"]
    imports = "".join(f"import nni_gconv.pruning.{name}\n" for name in modules)
    code = f"import sys\n{imports}assert 'nni' not in sys.modules"
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
