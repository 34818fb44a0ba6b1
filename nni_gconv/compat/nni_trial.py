"""NNI's trial API: parameters in, metrics out, and where a trial may write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError

__all__ = [
    "experiment_folder",
    "flat_parameters",
    "next_parameters",
    "report_final",
    "report_intermediate",
    "running_under_nni",
    "trial_folder",
]


def running_under_nni() -> bool:
    """Tell whether NNI's manager started this process.

    NNI's own tests set ``NNI_PLATFORM=unittest``, which does not count.
    """
    return os.environ.get("NNI_PLATFORM", "unittest") != "unittest"


def trial_folder() -> Path | None:
    """Return the folder that NNI gives the running trial for its files; None outside NNI."""
    given = os.environ.get("NNI_OUTPUT_DIR")
    return Path(given) if given and running_under_nni() else None


def experiment_folder() -> Path | None:
    """Return the folder all trials of an experiment share on this machine; None outside NNI.

    NNI gives a trial ``<experiment>/environments/<environment>/trials/<trial>``.
    """
    trial = trial_folder()
    return trial.parents[1] if trial is not None else None


def next_parameters() -> dict[str, Any]:
    """Return what the tuner chose for this trial, flat; empty when not under NNI.

    NNI wants to be asked exactly once in a trial, and asked before any metric is reported. This
    may be called again: it then returns what the first call got.

    Raises
    ------
    ConfigError
        The tuner sent no parameters.
    """
    if not running_under_nni():
        return {}
    import nni

    parameters: Any = nni.get_current_parameter()
    if parameters is None:
        parameters = nni.get_next_parameter()
    if not isinstance(parameters, dict):
        raise ConfigError(f"the tuner sent {parameters!r} as parameters, expected a mapping")
    return flat_parameters(parameters)


def flat_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Take nested choices apart: the name is the value of the choice, the rest stands beside it.

    Examples
    --------
    >>> flat_parameters({"prune.method": {"_name": "slimming", "sparsify.epochs": 8}, "seed": 1})
    {'prune.method': 'slimming', 'sparsify.epochs': 8, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping) and "_name" in value:
            flat[key] = value["_name"]
            flat |= flat_parameters({k: v for k, v in value.items() if k != "_name"})
        else:
            flat[key] = value
    return flat


def report_intermediate(metrics: dict[str, float]) -> None:
    """Send flat numbers with a key ``default`` as NNI's intermediate result; else do nothing."""
    if running_under_nni():
        import nni

        next_parameters()  # NNI asserts that a trial asked for its parameters first
        nni.report_intermediate_result(metrics)


def report_final(metrics: dict[str, float]) -> None:
    """Send flat numbers with a key ``default`` as NNI's final result; else do nothing."""
    if running_under_nni():
        import nni

        next_parameters()
        nni.report_final_result(metrics)
