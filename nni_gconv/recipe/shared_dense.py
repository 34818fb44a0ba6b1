"""The dense network that trials of one training share: trained once, by the first that comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nni_gconv import compat
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.files import links_in, lock_of, write_json
from nni_gconv.recipe.schema import Recipe
from nni_gconv.recipe.seal import opened, sealed, shared_place, written_since
from nni_gconv.training import Distributed, MetricLog


def shared_folder(recipe: Recipe, distributed: Distributed) -> Path | None:
    """Name the folder of the dense network that a recipe and its like ask for, if any."""
    share = None if recipe.train is None else recipe.train.share
    if share is None:
        return None
    if distributed.active:
        raise ConfigError("train.share: cannot be used under torchrun; train once beforehand")
    root = compat.experiment_folder() if share == "experiment" else Path(share).expanduser()
    if root is None:
        return None
    return shared_place(recipe.model_dump(mode="json"), root)


def read_shared(file: Path) -> dict[str, Any]:
    """Read what the training of a shared dense network came to; its files are checked."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is damaged; delete it to train again") from None
    return opened(file, "train", found)[0]


def train_shared(
    shared: Path, train: Callable[[Path, MetricLog], dict[str, Any]]
) -> dict[str, Any]:
    """Train once among all trials that share; the others wait and take the result.

    Parameters
    ----------
    shared : Path
        See :func:`shared_folder`.
    train : callable
        Trains, leaves its files in the folder it is given, and returns facts.
    """
    shared.mkdir(parents=True, exist_ok=True)
    facts = shared / "train.json"
    if shared.is_symlink():
        raise ConfigError(f"train.share: {shared} is a link: remove it")
    with lock_of(shared / ".lock"):
        links = links_in(shared)
        if links:
            raise ConfigError(f"train.share: {links[0]} is a link: remove it")
        if not facts.is_file():
            with MetricLog(shared, nni=False) as log:
                found = train(shared, log)
                write_json(facts, sealed("train", found, written_since(shared, {})))
    return {"shared": str(shared), **read_shared(facts)}
