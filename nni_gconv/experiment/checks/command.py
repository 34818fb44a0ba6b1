"""The command of trials: its program has to be there, and its recipe has to load."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from nni_gconv.compat import launch_path
from nni_gconv.errors import ConfigError
from nni_gconv.experiment.checks.machines import services_of
from nni_gconv.files import files_nearby
from nni_gconv.own_code import code_names
from nni_gconv.yaml12 import parse_overrides, read_yaml

#: Words of a shell's line behind which another command begins.
_OPERATORS = (";", "&", "&&", "|", "||", ">", ">>", "<", "2>", "2>&1")


def check_commands(config: Any) -> None:
    """Check what the trials start, as far as it can be seen from here.

    Parameters
    ----------
    config : nni.experiment.ExperimentConfig
        Of any platform; what a trial needs where it runs is looked for with ``local`` alone.

    Raises
    ------
    ConfigError
        No command, program, script or recipe; a recipe that no trial can load, or whose weights
        are not there.
    """
    for service in services_of(config):
        _check(service, config.search_space)


def _check(service: Any, space: Any) -> None:
    command, here = service.trial_command or "", service.platform == "local"
    if not command.strip():
        raise ConfigError("trialCommand is empty; for example: nni-gconv run recipe.yml")
    try:
        words = list(dropwhile(re.compile(r"\w+=.*").fullmatch, shlex.split(command)))
    except ValueError as error:
        raise ConfigError(f"trialCommand {command!r}: {error}") from None
    code = Path(service.trial_code_directory or ".")
    if words[:2] == ["nni-gconv", "run"] and len(words) > 2 and not words[2].startswith(("-", "$")):
        recipe = code / Path(words[2]).expanduser()
        if recipe.is_file():
            chosen = space if isinstance(space, Mapping) else {}
            _check_no_code(chosen, recipe)
            if "$" not in command and "`" not in command:
                _check_recipe(recipe, _overrides(words[3:]), chosen, code if here else None)
        elif here:
            raise ConfigError(f"trialCommand: no such recipe: {recipe}")
    elif words and re.fullmatch(r"[\w./+-]+", words[0]):  # else a line that only bash can judge
        _check_program(words, code, here)


def _check_program(words: Sequence[str], code: Path, here: bool) -> None:
    python = re.fullmatch(r"(.*/)?python[\d.]*", words[0])
    if python and len(words) > 1 and re.fullmatch(r"[\w./ +-]+\.py", words[1]):
        script = code / Path(words[1]).expanduser()
        if not script.is_file():
            raise ConfigError(f"trialCommand: no such script: {script}")
    if not here or words[0] == "nni-gconv":
        return
    found = subprocess.run(
        ["/bin/bash", "-c", 'type -t -- "$1"', "bash", words[0]],
        cwd=code, env={**os.environ, "PATH": launch_path()}, capture_output=True, check=False,
    )  # fmt: skip
    if found.returncode != 0:
        raise ConfigError(f"trialCommand: there is no program {words[0]!r} (seen from {code})")


def _overrides(words: Sequence[str]) -> list[str]:
    """Take the values of ``-o`` from the words of a command."""

    def values(own: Iterator[str]) -> Iterator[str]:
        for word in own:
            if word in ("-o", "--override"):
                yield next(own, "")
            elif word.startswith("--override="):
                yield word.partition("=")[2]
            elif word.startswith("-o"):
                yield word[2:]

    return list(values(takewhile(lambda word: word not in _OPERATORS, words)))


def _check_recipe(
    recipe: Path, overrides: Sequence[str], space: Mapping[str, Any], code: Path | None
) -> None:
    """Load the recipe as a trial does before it asks the tuner; look for weights from `code`."""
    from nni_gconv.recipe import load_recipe  # with torch: not for commands that run nothing

    given = parse_overrides(overrides)
    own = code_names(read_yaml(recipe.read_text("utf-8"), recipe.name)) | code_names(given)
    if any(key.startswith("prune") for key in own):
        return  # a method of the user's is imported by trials alone, from their folder
    weights = load_recipe(recipe, given).model.weights_file
    if code is None or weights is None or any(key.startswith("model") for key in space):
        return
    file = code / Path(weights).expanduser()
    # A name of published weights has neither a folder nor a suffix.
    if ("/" in weights or file.suffix) and not file.is_file():
        raise ConfigError(f"{recipe.name}: model.weights: no file {file}{files_nearby(file)}")


def _check_no_code(space: Mapping[str, Any], recipe: Path) -> None:
    """A trial refuses parameters that name code which its recipe does not: say so now."""
    own = recipe.read_text(encoding="utf-8", errors="replace")
    for key, value in code_names(space).items():
        if value not in own:
            raise ConfigError(
                f"search space {key.removesuffix('._name')!r}: {value!r} names code, which only "
                f"the recipe {recipe.name} may"
            )
