"""The search space of a recipe: the group counts of every layer and what they cost."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.search import ChoiceRules, GroupTables, cost_tables, score_tables
from nni_gconv.recipe import Recipe, Trial, TrialFolder, load_recipe
from nni_gconv.training import Distributed

#: Where the recipe takes a layer's group count from.
KEY = "prune.options.group_config"
_DENSE = ("name", "seed", "device", "threads", "model", "data")
_DIGITS = 6


def recipe_space(
    source: Recipe | str | Path,
    overrides: dict[str, Any] | None = None,
    *,
    max_groups: int = 64,
    min_factor: int = 1,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Make the search space of the layers that a recipe's ``prune`` section selects.

    Parameters
    ----------
    source : Recipe, str or Path
        A recipe with ``prune: {method: gconv}``. Shares of score are of its ``model.weights``;
        without them of random weights, which serves as well: they hardly differ.
    overrides : dict, optional
        Dotted keys and values.
    max_groups, min_factor
        See :func:`nni_gconv.search_groups`.

    Returns
    -------
    space : dict
        NNI's search space, a key a layer, with costs.
    skipped : dict of str to str
        Layers that stay dense, each with the reason.

    Raises
    ------
    ConfigError
        The recipe is wrong, prunes by another method, or no layer can be grouped.
    """
    recipe = load_recipe(source, overrides)
    if recipe.prune is None or recipe.prune.method != "gconv":
        method = "nothing" if recipe.prune is None else recipe.prune.method
        raise ConfigError(f"prune.method: a search of groups needs gconv, the recipe has {method}")
    if recipe.prune.budget is not None:
        raise ConfigError("prune.budget: leave it out; the tuner chooses every layer's groups")
    dense = Recipe.model_validate(recipe.model_dump(mode="json", include=set(_DENSE)))
    alone = Distributed()
    with (
        tempfile.TemporaryDirectory() as scratch,
        TrialFolder(Path(scratch) / "trial", dense, alone) as folder,
        Trial(dense, folder, alone, quiet=True) as trial,
    ):
        example = torch.zeros(1, *trial.input_shape, device=trial.device)
        rules = ChoiceRules(max_groups=max_groups, min_factor=min_factor)
        tables = cost_tables(trial.model, example, recipe.prune.config_list, rules)
        tables = score_tables(tables, trial.model, seed=recipe.seed)
    return group_space(tables), tables.skipped


def group_space(tables: GroupTables) -> dict[str, Any]:
    """Write tables of group counts as NNI's search space with costs.

    Parameters
    ----------
    tables : GroupTables
        From :func:`nni_gconv.groupconv.search.tables.score_tables`.

    Returns
    -------
    dict
        See :mod:`nni_gconv.tuning.options`. Layers without a choice are left out.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 1, bias=False))
    >>> tables = cost_tables(net, torch.zeros(1, 4, 2, 2), [{"op_types": ["Conv2d"]}])
    >>> group_space(score_tables(tables, net))["prune.options.group_config.0"]["macs"]
    [1.0, 0.5, 0.25]
    """
    space = {}
    for table in tables.layers:
        if len(table.choices) > 1:
            space[f"{KEY}.{table.name}"] = {
                "_type": "choice",
                "_value": list(table.choices),
                "params": [_share(p, tables.dense.params) for p in table.params],
                "macs": [_share(m, tables.dense.macs) for m in table.macs],
                "lost": [round(1 - table.fraction(i), 4) for i in range(len(table.choices))],
            }
    if not space:
        raise ConfigError("config_list: no layer has more than one group count to choose from")
    return space


def _share(cost: int, whole: int) -> float:
    return round(cost / whole, _DIGITS)
