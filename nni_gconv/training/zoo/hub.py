"""Networks and weights from timm and the Hugging Face hub; never by pickle.

A folder, local or of the hub, is what ``PyTorchModelHubMixin.save_pretrained`` writes:
``config.json`` with the constructor's arguments and ``model.safetensors``. Its class is the user's
own code and is named beside it, ``my_net:Net``; a folder names none.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from nni_gconv.errors import CheckpointError, ConfigError, unknown_name
from nni_gconv.training.zoo.weights import load_weights

TIMM = "timm:"
HUB = "hf-hub:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def need(module: str, extra: str, what: str) -> Any:
    """Import a library that an extra brings.

    Raises
    ------
    ConfigError
        It is not installed; says how it is.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{what} needs {module}: pip install 'nni-gconv[{extra}]'") from error


def create_timm(
    name: str, num_classes: int | None = None, weights: str | None = None, **options: Any
) -> nn.Module:
    """Build one of timm's networks.

    Parameters
    ----------
    name : str
        Without the ``timm:``; ``hf-hub:owner/name`` is one of timm's networks on the hub.
    num_classes : int, optional
        Default: timm's.
    weights : str, optional
        ``"pretrained"`` for timm's own, or a file for :func:`load_weights`.
    **options
        Further arguments of ``timm.create_model``: ``in_chans``, ``drop_rate``, ...

    Raises
    ------
    ConfigError
        timm is not installed, or it does not know the name or an option.
    """
    timm = need("timm", "timm", f"model.name: {TIMM}{name}")
    if not name.startswith(HUB):
        bare = name.partition(".")[0]
        if not timm.is_model(bare):
            raise ConfigError(unknown_name("timm model", bare, timm.list_models(), "model.name"))
    pretrained = weights == "pretrained"
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model: {TIMM}{name}: {str(error).splitlines()[0]}") from error
    return model if weights is None or pretrained else load_weights(model, weights)


def timm_input_size(name: str) -> tuple[int, int, int]:
    """Return the channels, height and width that one of timm's networks is given."""
    timm = need("timm", "timm", f"model.name: {TIMM}{name}")
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(unknown_name("timm model", name, timm.list_models(), "model.name"))
    config = timm.get_pretrained_cfg(name)
    size = config.input_size if config is not None else (3, 224, 224)
    return int(size[0]), int(size[1]), int(size[2])


def is_pretrained_folder(weights: str | None) -> bool:
    """Tell whether weights are named by a folder or by a repository of the hub."""
    if weights is None:
        return False
    return weights.startswith(HUB) or Path(weights).expanduser().is_dir()


def read_pretrained(weights: str) -> tuple[dict[str, Any], Path]:
    """Return the constructor's arguments and the file of weights of a folder.

    Parameters
    ----------
    weights : str
        A folder, or ``hf-hub:owner/name`` with ``@revision`` behind it or not.

    Raises
    ------
    CheckpointError
        There is no ``model.safetensors``, or ``config.json`` is no mapping.
    """
    config, file = _hub_files(weights) if weights.startswith(HUB) else _local_files(weights)
    if config is None:
        return {}, file
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{config}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{config}: expected a mapping of the constructor's arguments")
    return content, file


def _local_files(weights: str) -> tuple[Path | None, Path]:
    folder = Path(weights).expanduser()
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: holds no {WEIGHTS}; save it with safetensors, a pickle is not read"
        )
    config = folder / CONFIG
    return (config if config.is_file() else None), file


def _hub_files(weights: str) -> tuple[Path | None, Path]:
    hub = need("huggingface_hub", "hub", f"model.weights: {weights}")
    name, _, revision = weights.removeprefix(HUB).partition("@")

    def fetched(file: str) -> Path:
        return Path(hub.hf_hub_download(name, file, revision=revision or None))

    try:
        file = fetched(WEIGHTS)
    except Exception as error:  # the library raises many, of the network and of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{weights}: {WEIGHTS} cannot be had: {reason}") from error
    try:
        return fetched(CONFIG), file
    except Exception:  # a folder without constructor's arguments has none
        return None, file
