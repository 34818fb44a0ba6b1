"""Where in a YAML file a value stands, so that a message can name the line to fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml


def line_of(file: Path, place: Sequence[str | int]) -> int | None:
    r"""Return the line of a value, or of the nearest thing around it that is there.

    Parameters
    ----------
    file : Path
        A YAML file.
    place : sequence of str or int
        Keys and list positions from the top; keys in any case and with or without ``_``, as NNI
        takes them.

    Returns
    -------
    int or None
        From 1; None where nothing of it is in the file.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.yml"
    >>> _ = file.write_text("one: 1\nmany:\n- {x: 1}\n- {x: 2}\n")
    >>> line_of(file, ("many", 1, "x")), line_of(file, ("many", 1, "y")), line_of(file, ("no",))
    (4, 4, None)
    """
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    line = None
    for step in place:
        found = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if plain_key(key.value) == plain_key(step):
                    found, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and step in range(len(node.value)):
            found = node.value[int(step)]
            line = found.start_mark.line + 1
        if found is None:
            return line
        node = found
    return line


def plain_key(key: object) -> str:
    """Return a key as NNI compares it: in any case, with and without _."""
    return str(key).lower().replace("_", "")
