"""Whether a tuner or assessor will come up: name, class, arguments, and what NNI's own break on."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError, unknown_name

_PROBE = Path(__file__).with_name("probe.py")
_PROBE_SECONDS = 120
#: The process of the tuner has so long to import it and to connect (see _shims/patience.js; 10 s
#: where nnictl starts the experiment by itself).
_CONNECT_SECONDS = 90

_USE = "use {{className: nni_gconv.tuner.{0}, codeDirectory: .}}"
#: What NNI's own do here, by their lower-case names; shown by benchmarks/algorithms.py.
_BROKEN = {
    "hyperband": "NNI's own dies at the first metric; " + _USE.format("Hyperband"),
    "bohb": "NNI's own dies at the first metric; " + _USE.format("BOHB"),
    "smac": "its package cannot be installed with today's tools; use TPE",
}
_FRAGILE = {
    "gp": "NNI's GP dies after its first random trials with today's scipy; use TPE",
    "metis": "NNI's Metis dies after its first random trials with today's scipy; use TPE",
    "anneal": "NNI's Anneal needs hyperopt 0.2.7 or newer: pip install 'nni-gconv[anneal]'",
}


def check_algorithms(config: Any) -> list[str]:
    """Check the tuner and the assessor of a canonical configuration.

    Parameters
    ----------
    config : nni.experiment.ExperimentConfig
        The experiment.

    Returns
    -------
    list of str
        What is allowed but may not be meant.

    Raises
    ------
    ConfigError
        An unknown name, a class that cannot be loaded, an argument that it does not know, or an
        algorithm of NNI's that is known to break.
    """
    notes: list[str] = []
    for kind in ("tuner", "assessor"):
        algorithm = getattr(config, kind)
        if algorithm is None:
            continue
        name = algorithm.name
        class_name = _known(kind, algorithm) if name else algorithm.class_name
        if class_name is not None:
            notes += _probed(config, kind, class_name, algorithm)
    return [*notes, *algorithm_notes(config)]


def algorithm_notes(config: Any) -> list[str]:
    """Return what NNI's own algorithms are known to do in this combination."""
    name = (config.tuner.name or "").lower()
    name = name.removesuffix("tuner")
    notes = [f"tuner.name {config.tuner.name}: {_FRAGILE[name]}"] if name in _FRAGILE else []
    if config.assessor is not None and name in ("tpe", "evolution"):
        better = _USE.format("TPE" if name == "tpe" else "Evolution")
        notes.append(
            f"tuner.name {config.tuner.name}: with an assessor NNI's own may die of a trial that "
            f"reports while it is stopped; {better}"
        )
    return notes


def _known(kind: str, algorithm: Any) -> str | None:
    """Return the class to look at behind a name: of NNI's own only where it is given arguments."""
    from nni_gconv.compat import algorithm_class, builtin_class, nni_algorithms

    name = algorithm.name
    names = nni_algorithms(kind)
    if name.lower() not in {known.lower() for known in names}:
        raise ConfigError(unknown_name(kind, name, names, f"{kind}.name"))
    broken = _BROKEN.get(name.lower())
    if kind == "tuner" and broken:
        raise ConfigError(f"tuner.name {name}: {broken}")
    own = algorithm_class(name)
    return builtin_class(name) if own is None and algorithm.class_args else own


def _probed(config: Any, kind: str, class_name: str, algorithm: Any) -> list[str]:
    service = config.training_service
    first = service[0] if isinstance(service, list) else service
    folder = str(getattr(first, "trial_code_directory", None) or config.trial_code_directory or ".")
    params = {"trialCodeDirectory": folder}
    asked = {
        "kind": kind,
        "name": algorithm.name if class_name.startswith("nni.") else None,
        "className": class_name,
        "codeDirectory": str(algorithm.code_directory or folder),
        "classArgs": dict(algorithm.class_args or {}),
        "searchSpace": config.search_space,
        "expParams": base64.b64encode(json.dumps(params).encode()).decode(),
    }
    where = f"{kind}.name {algorithm.name}" if algorithm.name else f"{kind}.className {class_name}"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(_PROBE), json.dumps(asked)],
            capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False,
        )  # fmt: skip
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{where}: not loaded in {_PROBE_SECONDS} s; it has {_CONNECT_SECONDS} to connect"
        ) from None
    except ValueError:
        words = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"{where}: loading it ended the process: {words}") from None
    if answer["problem"]:
        raise ConfigError(answer["problem"])
    if answer["seconds"] > _CONNECT_SECONDS:
        return [
            f"{where}: took {answer['seconds']:.0f} s to load here and has {_CONNECT_SECONDS} to "
            "connect: import what is heavy later, where it is used"
        ]
    return []
