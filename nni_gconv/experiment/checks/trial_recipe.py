"""What a trial command says of its recipe, read without loading it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError
from nni_gconv.yaml12 import read_yaml


@dataclass(frozen=True)
class TrialRecipe:
    """A recipe, and what its command says beside it.

    Attributes
    ----------
    recipe : mapping
        As the file has it.
    given : mapping of str to str
        What the command replaces, by key.
    environment : mapping of str to str
        Variables in front of the command.
    """

    recipe: Mapping[str, Any]
    given: Mapping[str, str]
    environment: Mapping[str, str]

    def value(self, key: str, default: Any = None) -> Any:
        """Return a value of the recipe's top level, as trials will have it."""
        return self.given.get(key, self.recipe.get(key, default))


def trial_recipe(command: str, code: Path) -> TrialRecipe | None:
    """Read the recipe of a trial command; not through `load_recipe`, which imports torch.

    Parameters
    ----------
    command : str
        The trial command.
    code : Path
        The trial's code directory.

    Returns
    -------
    TrialRecipe or None
        None where the command is not ``nni-gconv run RECIPE`` or the recipe cannot be read.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    environment = {}
    while words and re.fullmatch(r"\w+=.*", words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
    if words[:2] != ["nni-gconv", "run"] or len(words) < 3:
        return None
    try:
        text = (code / Path(words[2]).expanduser()).read_text(encoding="utf-8")
        recipe = read_yaml(text, words[2])
    except (OSError, ConfigError, UnicodeDecodeError):
        return None
    if not isinstance(recipe, dict):
        return None
    given = dict(word.partition("=")[::2] for word in words[3:] if "=" in word)
    return TrialRecipe(recipe, given, environment)
