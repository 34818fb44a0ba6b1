"""Trials from elsewhere: what other experiments exported, and the tuner's own file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError

Record = tuple[Mapping[str, Any], Any]


def read_records(path: str | Path) -> list[Record]:
    """Read pairs of parameters and results from a JSON file.

    Parameters
    ----------
    path : str or Path
        What ``nnictl experiment export``, ``nni-gconv report --json`` or the tuner itself
        (``pareto.json``) has written.

    Returns
    -------
    list of (parameters, result)
        A result is a number or a mapping with ``default``.

    Raises
    ------
    ConfigError
        The file cannot be read, or holds something else.
    """
    path = Path(path).expanduser()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from None
    if isinstance(data, dict):
        data = data.get("trials")
    if not isinstance(data, list):
        raise ConfigError(
            f'{path}: expected a list of trials, [{{"parameter": ..., "value": ...}}, ...]'
        )
    return records_in(data)


def records_in(data: Any) -> list[Record]:
    """Find parameters and results in what NNI hands a tuner; what is neither is passed over.

    Examples
    --------
    >>> records_in([{"parameter": {"x": 1}, "value": '{"default": 0.9}'}, {"other": 1}])
    [({'x': 1}, {'default': 0.9})]
    """
    data = _loaded(data)
    found = []
    for entry in data if isinstance(data, list) else ():
        record = _loaded(entry)
        if not isinstance(record, Mapping):
            continue
        parameters = _loaded(record.get("parameter", record.get("parameters")))
        value = _loaded(record.get("value"))
        if value is None and record.get("accuracy") is not None:  # a row of our report
            value = {"default": record["accuracy"], **record}
        if isinstance(parameters, Mapping) and value is not None:
            found.append((parameters, value))
    return found


def scalar(value: Any, key: str) -> float | None:
    """Return a result's number: the result itself, or what stands under `key`; None if it is none.

    Examples
    --------
    >>> scalar({"default": 0.9}, "default"), scalar(0.9, "default"), scalar({"a": 1}, "default")
    (0.9, 0.9, None)
    """
    number = value.get(key) if isinstance(value, Mapping) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return float(number) if math.isfinite(number) else None


def _loaded(value: Any) -> Any:
    # NNI sends results as strings of strings.
    for _ in range(2):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value
