"""Errors of kept channels against least squares; partitions and searches against enumeration."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nni_gconv import GroupConvPruner, search_groups
from nni_gconv.errors import ConfigError
from nni_gconv.groupconv import OutputError, partition_by_error
from nni_gconv.groupconv.partition import partition
from nni_gconv.pruning.calibration import layer_covariances
from nni_gconv.pruning.settings import PruneSettings, create_pruner


def problem(filters=4, channels=4, taps=2, seed=0):
    """A layer, correlated things that it reads, and their covariance."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(channels * taps,) * 2)
    read = generator.normal(size=(500, channels * taps)) @ mix
    read -= read.mean(0)
    weight = generator.normal(size=(filters, channels, taps))
    return weight, read, read.T @ read / len(read)


def least_squares(weight, read, channels):
    """Error of each filter that keeps these channels: what lstsq leaves."""
    taps = weight.shape[2]
    columns = [c * taps + k for c in channels for k in range(taps)]
    said = read @ weight.reshape(len(weight), -1).T
    fitted = np.linalg.lstsq(read[:, columns], said, rcond=None)[0]
    return ((said - read[:, columns] @ fitted) ** 2).mean(0)


def splits(items, groups):
    """All ways to split items evenly, in named groups."""
    size = items // groups
    return set(itertools.permutations([g for g in range(groups) for _ in range(size)]))


def least_error(weight, read, groups):
    """Error of the best partition of all."""
    filters, channels = weight.shape[:2]
    best = np.inf
    for columns in splits(channels, groups):
        errors = [
            least_squares(weight, read, [c for c in range(channels) if columns[c] == g])
            for g in range(groups)
        ]
        for rows in splits(filters, groups):
            best = min(best, sum(errors[g][f] for f, g in enumerate(rows)))
    return best


def test_the_error_is_what_least_squares_leaves():
    weight, read, covariance = problem()
    error = OutputError(weight, covariance, ridge=0.0)
    for count in range(1, 4):
        for channels in itertools.combinations(range(4), count):
            expected = least_squares(weight, read, channels)
            assert np.allclose(error.of(np.array(channels)), expected)
            few = error.of(np.array(channels), np.array([2, 0]))
            assert np.allclose(few, expected[[2, 0]])


def test_worth_is_the_error_that_one_channel_more_or_less_makes():
    weight, _, covariance = problem(channels=5)
    error = OutputError(weight, covariance, ridge=0.0)
    inside, filters = np.array([0, 3]), np.array([1, 2])
    now = error.of(inside, filters).sum()
    worth = error.worth(inside, filters)
    assert worth[0] == pytest.approx(error.of(np.array([3]), filters).sum() - now)
    assert worth[3] == pytest.approx(error.of(np.array([0]), filters).sum() - now)
    for other in (1, 2, 4):
        more = error.of(np.array([0, 3, other]), filters).sum()
        assert worth[other] == pytest.approx(now - more)


@pytest.mark.parametrize("seed", range(5))
def test_the_partition_is_the_best_of_all(seed):
    weight, read, covariance = problem(4, 6 if seed % 2 else 4, seed=seed)
    error = OutputError(weight, covariance, ridge=0.0)
    scores = np.linalg.norm(weight, axis=2)
    found = partition_by_error(error, 2, scores, restarts=10)
    assert found.lost == pytest.approx(least_error(weight, read, 2), rel=1e-6)
    at = [
        error.of(np.flatnonzero(found.col_groups == g), np.flatnonzero(found.row_groups == g))
        for g in range(2)
    ]
    assert found.lost == pytest.approx(sum(e.sum() for e in at))


@pytest.mark.slow
def test_it_loses_less_than_the_partition_by_norms():
    lost = {"norm": 0.0, "error": 0.0}
    for seed in range(3):
        weight, _, covariance = problem(16, 16, seed=seed)
        error = OutputError(weight, covariance)
        scores = np.linalg.norm(weight, axis=2)
        first = partition(scores, 4)
        for g in range(4):
            kept = np.flatnonzero(first.col_groups == g)
            lost["norm"] += error.of(kept, np.flatnonzero(first.row_groups == g)).sum()
        found = partition_by_error(error, 4, scores)
        assert (np.bincount(found.row_groups) == 4).all()
        assert (np.bincount(found.col_groups) == 4).all()
        lost["error"] += found.lost
    assert lost["error"] < 0.95 * lost["norm"]


def test_dead_and_repeated_channels_do_no_harm():
    weight, _, covariance = problem()
    covariance[:2] = covariance[:, :2] = 0.0
    covariance[6:] = covariance[4:6]
    covariance[:, 6:] = covariance[:, 4:6]
    found = partition_by_error(OutputError(weight, covariance), 2, np.ones((4, 4)))
    assert 0 <= found.lost <= found.total
    nothing = OutputError(weight, np.zeros((8, 8)))
    assert partition_by_error(nothing, 2, np.ones((4, 4))).fraction == 1.0


@pytest.mark.parametrize("bad", [np.eye(7), np.full((8, 8), np.nan)])
def test_a_covariance_that_does_not_fit_is_one_line(bad):
    with pytest.raises(ConfigError, match="covariance"):
        OutputError(problem()[0], bad)


# -- searches --------------------------------------------------------------------------------


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 1)
    ).eval()


IMAGES = torch.randn(64, 4, 6, 6, generator=torch.Generator().manual_seed(1)).cumsum(1)
CONVS = [{"op_types": ["Conv2d"]}]


@pytest.mark.parametrize("budget", [{"macs": 0.7}, {"macs": 0.47}, {"params": 0.6, "macs": 0.6}])
def test_group_counts_are_the_best_by_error_of_all_within_the_budget(budget):
    model = net()
    seen = layer_covariances(model, IMAGES, ["0", "2", "4"])
    found = search_groups(
        model, IMAGES[:1], CONVS, budget, score="error", covariances=seen, restarts=10
    )
    shares = {}
    for table in found.tables:
        weight = model.get_submodule(table.name).weight.detach().double()
        covariance = seen[table.name].numpy()
        # The covariance stands for places: its root has the same least squares.
        values, vectors = np.linalg.eigh(
            covariance + 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        )
        root = (vectors * np.sqrt(values * len(values))) @ vectors.T
        flat = weight.flatten(2).numpy()
        assert table.total == pytest.approx(
            float(
                np.einsum(
                    "fi,ij,fj->",
                    flat.reshape(len(flat), -1),
                    covariance,
                    flat.reshape(len(flat), -1),
                )
            )
        )
        for option, count in enumerate(table.choices):
            if count <= 2:
                lost = least_error(flat, root, count) if count > 1 else 0.0
                assert 1 - table.fraction(option) == pytest.approx(lost / table.total, abs=5e-3)
            shares[table.name, count] = table.fraction(option)
    best = -1.0
    for counts in itertools.product(*(t.choices for t in found.tables)):
        params, macs = found.dense
        for table, count in zip(found.tables, counts, strict=True):
            params -= table.dense_params - table.params[table.choices.index(count)]
            macs -= table.dense_macs - table.macs[table.choices.index(count)]
        costs = {"params": params / found.dense.params, "macs": macs / found.dense.macs}
        if all(costs[m] <= limit for m, limit in budget.items()):
            kept = [shares[t.name, g] for t, g in zip(found.tables, counts, strict=True)]
            best = max(best, sum(kept) / len(kept))
    assert found.retained == pytest.approx(best)
    assert found.gap == 0.0


def test_error_and_covariances_go_together():
    model = net()
    seen = layer_covariances(model, IMAGES, ["0", "2"])
    for options in ({"score": "error"}, {"covariances": seen}):
        with pytest.raises(ConfigError, match="covariances="):
            search_groups(model, IMAGES[:1], CONVS, {"macs": 0.6}, **options)
    with pytest.raises(ConfigError, match="none for the layer '4'"):
        search_groups(model, IMAGES[:1], CONVS, {"macs": 0.6}, score="error", covariances=seen)


# -- the pruner ------------------------------------------------------------------------------


def test_the_pruner_splits_by_error_and_searches_by_it():
    model = net()
    options = {"criterion": "error", "calibration": IMAGES, "dummy_input": IMAGES[:1]}
    pruner = GroupConvPruner(model, [{"op_types": ["Conv2d"], "num_groups": 2}], **options)
    pruner.compress()
    pruner.unwrap_model()
    seen = layer_covariances(model, IMAGES, ["0", "2", "4"])
    for name, found in pruner.partitions.items():
        weight = model.get_submodule(name).weight.detach().double()
        error = OutputError(weight, seen[name])
        alone = partition_by_error(error, 2, weight.flatten(2).norm(dim=2), restarts=8)
        assert found.lost == pytest.approx(alone.lost)

    searched = GroupConvPruner(net(), CONVS, budget={"macs": 0.6}, **options)
    expected = search_groups(
        net(), IMAGES[:1], CONVS, {"macs": 0.6}, score="error", covariances=seen, fill=0.99
    )
    assert searched.groups == {name: g for name, g in expected.items() if g > 1}


def test_channels_that_masks_removed_are_left_out():
    model = net()
    mask, bias = torch.ones(4, 4, 1, 1), torch.ones(4)
    mask[:2] = bias[:2] = 0
    options = {"criterion": "error", "calibration": IMAGES, "dummy_input": IMAGES[:1]}
    pruner = GroupConvPruner(
        model,
        [{"op_names": ["2"], "num_groups": 2}],
        masks={"0": {"weight": mask, "bias": bias}},
        **options,
    )
    _, masks = pruner.compress()
    pruner.unwrap_model()
    assert not masks["2"]["weight"][:, :2].any()
    assert (masks["2"]["weight"][:, 2:].sum((1, 2, 3)) == 9).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give calibration="),
        ({"calibration": IMAGES, "sharing": "blocks"}, "sharing: 'blocks'"),
        ({"calibration": IMAGES, "method": "grps"}, "method: 'grps'"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(options, words):
    config = [{"op_types": ["Conv2d"], "num_groups": 2}]
    with pytest.raises(ConfigError, match=words):
        GroupConvPruner(net(), config, dummy_input=IMAGES[:1], criterion="error", **options)


def test_a_recipe_says_it_as_an_option():
    settings = PruneSettings.model_validate(
        {
            "method": "gconv",
            "config_list": [{"op_types": ["Conv2d"], "num_groups": 2}],
            "options": {"criterion": "error"},
            "calibration": {"images": 64},
        }
    )
    pruner = create_pruner(settings, net(), dummy_input=IMAGES[:1], calibration=IMAGES)
    assert set(pruner.groups.values()) == {2}
