"""Weights from files: safetensors or torch state dicts, never a pickle that could run code."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nni_gconv.errors import CheckpointError

# Where training scripts put the state dict inside a checkpoint.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
#: What DataParallel and torch.compile leave in the names of what they wrap.
AROUND = ("module", "_orig_mod")
SHOWN = 3


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or from one that torch wrote.

    Parameters
    ----------
    path : str or Path
        ``~`` is expanded. A checkpoint that holds the state dict under ``state_dict``,
        ``model_state_dict``, ``model`` or ``net`` is opened, and what DataParallel (``module.``)
        and torch.compile (``_orig_mod.``) leave before all names is cut.

    Returns
    -------
    dict of str to Tensor
        On the CPU.

    Raises
    ------
    CheckpointError
        The file is missing or damaged, would have to run code to be read, or is no state dict.

    Examples
    --------
    >>> import os, tempfile
    >>> name = os.path.join(tempfile.mkdtemp(), "w.pt")
    >>> torch.save({"state_dict": {"module.weight": torch.ones(2)}}, name)
    >>> read_state_dict(name)
    {'weight': tensor([1., 1.])}
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not a state dict (name: tensor)"
        )
    wrong = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong or not content:
        what = f"{_some(wrong)} is no tensor" if wrong else "it is empty"
        raise CheckpointError(f"{path}: not a state dict (name: tensor); {what}")
    state = {str(key): value for key, value in content.items()}
    while _first_part(state) in AROUND:
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def load_weights(
    model: nn.Module, path: str | Path, *, head: Literal["keep", "new"] = "keep"
) -> nn.Module:
    """Load a file of weights into a model that has exactly these tensors.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, and only if everything fits.
    path : str or Path
        See :func:`read_state_dict` for what is read. Weights with a ``mask`` beside them, as GConv
        Prune saves them, are masked; what DataParallel and torch.compile left inside a name is cut,
        and a first part that all names have and the model has not, as the ``model.`` of a Lightning
        module.
    head : {"keep", "new"}, default "keep"
        ``"new"``: the last layer keeps the weights that it has, whatever the file's; so does any
        that differs from the file's in its number of outputs alone, such as heads for training.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    CheckpointError
        The file cannot be read, or its names or shapes do not fit the model; the message names
        the first of them. The counters of batch norms (``num_batches_tracked``) may be missing.

    Examples
    --------
    >>> import os, tempfile
    >>> name = os.path.join(tempfile.mkdtemp(), "w.pt")
    >>> torch.save(nn.Linear(3, 2).state_dict(), name)
    >>> load_weights(nn.Linear(3, 2), name)
    Linear(in_features=3, out_features=2, bias=True)
    """
    own = model.state_dict()
    state = _masked(_renamed(read_state_dict(path), own), own)
    if head == "new":
        kept = _heads(model, state)
        state = {k: v for k, v in state.items() if k.rpartition(".")[0] not in kept}
        state |= {k: v for k, v in own.items() if k.rpartition(".")[0] in kept}
    check_fit(model, state, str(path))
    model.load_state_dict(state, strict=False)
    return model


def _renamed(state: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Cut what wrappers left in names that the model has without it."""
    short = {key: ".".join(p for p in key.split(".") if p not in AROUND) for key in state}
    if _first_part(short.values()) and not own.keys() & state:
        inner = {key: name.partition(".")[2] for key, name in short.items()}
        short = inner if own.keys() & set(inner.values()) else short
    return {short[k] if k not in own and short[k] in own else k: v for k, v in state.items()}


def _first_part(names: Iterable[str]) -> str:
    """Return what all names have in front of their first dot, "" where they differ."""
    parts = {tuple(name.partition(".")[:2]) for name in names}
    first, dot = parts.pop() if len(parts) == 1 else ("", "")
    return first if dot else ""


def _masked(state: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Apply masks that the model knows nothing of to the weights beside them."""
    found = dict(state)
    for key, mask in state.items():
        module, _, name = key.rpartition(".")
        weight = found.get(f"{module}.weight".lstrip("."))
        if name != "mask" or key in own or weight is None:
            continue
        kernels = [1] * (weight.dim() - mask.dim())
        if mask.dim() == weight.dim() or weight.shape[: mask.dim()] == mask.shape:
            applied = mask.reshape(*mask.shape, *kernels).to(weight.dtype)
            found[f"{module}.weight".lstrip(".")] = weight * applied
            del found[key]
    return found


def _heads(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Names of the last layer and of those that have another number of outputs than the file's."""
    layers = [
        (name, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    heads = {name for name, _ in layers[-1:]}
    for name, weight in layers:
        there = state.get(f"{name}.weight".lstrip("."))
        if (
            there is not None
            and there.shape != weight.shape
            and there.shape[1:] == weight.shape[1:]
        ):
            heads.add(name)
    return heads


def check_fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError unless `state` has the names and the shapes of `model`'s tensors."""
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    shapes = [
        f"{key} {tuple(state[key].shape)} (model: {tuple(value.shape)})"
        for key, value in own.items()
        if key in state and isinstance(value, Tensor) and state[key].shape != value.shape
    ]
    problems = []
    if missing:
        problems.append(f"missing {_some(missing)}")
    if foreign:
        problems.append(f"not in the model {_some(foreign)}")
    if shapes:
        problems.append(f"other shapes {_some(shapes)}")
    if problems:
        raise CheckpointError(
            f"{where}: does not fit {type(model).__name__}: " + "; ".join(problems)
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a file of plain tensors; it is damaged or holds a pickled object, which "
            "is not read because that would run code (save model.state_dict() instead)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise CheckpointError(f"{path}: not a readable torch file ({reason})") from error
