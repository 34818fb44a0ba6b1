"""One safetensors file with weights and plan: written, read, checked."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nni_gconv._version import __version__
from nni_gconv.artefact.plan import FORMAT, plan_of, rebuild
from nni_gconv.errors import CheckpointError, ConfigError, check_model
from nni_gconv.files import atomic_path, sort_header
from nni_gconv.inference import FormPlan, Optimized, apply_forms, mark_optimized, origin_of


def save_compact(
    model: nn.Module,
    path: str | Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
) -> Path:
    """Write a small model to one safetensors file.

    Parameters
    ----------
    model : nn.Module
        The small model; or what :func:`nni_gconv.optimize` made of one: its weights as they were
        are written, and which forms its layers have.
    path : str or Path
        File to write, by convention ``*.safetensors``; written under a temporary name first.
    recipe : mapping, optional
        JSON-able description of how the model came about; kept in the file.
    layers : mapping, optional
        What each layer costs, beside the dense network: of
        :func:`nni_gconv.speedup.layer_sizes.compare_sizes`. ``nni-gconv compare`` shows it.

    Returns
    -------
    Path
        The file.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> net = nn.Sequential(nn.Conv2d(3, 5, 3))
    >>> file = save_compact(net, Path(folder) / "m.safetensors")
    >>> load_compact(file, lambda: nn.Sequential(nn.Conv2d(3, 8, 3)))[0].out_channels
    5
    """
    check_model(model)
    path = Path(path)
    origin = origin_of(model)
    forms = {}
    if origin is not None:
        model, forms = origin.model, {"forms": origin.plan.to_dict()}
    plan = json.dumps({**plan_of(model), **forms})
    metadata = {
        "format": "pt",
        "nni_gconv.plan": plan,
        "nni_gconv.plan_sha256": hashlib.sha256(plan.encode()).hexdigest(),
        "nni_gconv.versions": json.dumps(versions()),
        "nni_gconv.recipe": json.dumps(recipe or {}),
        "nni_gconv.layers": json.dumps(layers or {}),
    }
    tensors: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # safetensors stores no tensor twice: a tied one is written under its first name.
        first = seen.setdefault(id(tensor), name)
        if first == name:
            # A copy: two tensors may be parts of the same memory, which safetensors refuses.
            tensors[name] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    ties = {name: seen[id(t)] for name, t in model.state_dict(keep_vars=True).items()}
    ties = {name: first for name, first in ties.items() if name != first}
    metadata["nni_gconv.ties"] = json.dumps(ties)
    metadata["nni_gconv.weights_sha256"] = weights_digest(tensors)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        sort_header(temporary)
    return path


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors on the CPU: of every name, type, shape and bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # As bytes: NumPy does not know every type that torch has.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what makes numbers: this package, NNI, torch, torchvision, Python."""
    import platform

    found = {"nni_gconv": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "nni", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def holds_plan(path: str | Path) -> bool:
    """Tell whether a file was written by :func:`save_compact`, as far as its head shows."""
    try:
        with safe_open(Path(path), framework="pt") as file:
            return "nni_gconv.plan" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_plan(path: str | Path) -> dict[str, Any]:
    """Read the plan, versions and recipe of a file without its weights.

    Returns
    -------
    dict
        ``{"plan": ..., "versions": ..., "recipe": ..., "layers": ..., "ties": ...,
        "weights_sha256": ...}``.

    Raises
    ------
    CheckpointError
        The file is missing, truncated, no small model of ours, of a newer format, or its plan was
        edited.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    text = metadata.get("nni_gconv.plan")
    if text is None:
        raise CheckpointError(f"{path} holds no plan: it was not written by save_compact()")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("nni_gconv.plan_sha256"):
        raise CheckpointError(f"{path}: the plan was edited after the file was written")
    try:
        plan = json.loads(text)
        version = int(plan["format"])
        more = {
            key: json.loads(metadata.get(f"nni_gconv.{key}", "{}"))
            for key in ("versions", "recipe", "layers", "ties")
        }
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} holds a plan that cannot be read: {error!r}") from error
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has plan format {version}, this version reads up to {FORMAT}: "
            "upgrade nni-gconv"
        )
    return {"plan": plan, **more, "weights_sha256": metadata.get("nni_gconv.weights_sha256")}


def load_compact(
    path: str | Path,
    model_fn: Callable[[], nn.Module],
    *,
    device: torch.device | str = "cpu",
    optimized: bool = True,
) -> nn.Module:
    """Rebuild a small model from its file and the untouched architecture.

    Parameters
    ----------
    path : str or Path
        Written by :func:`save_compact`.
    model_fn : callable
        Makes the dense model, ``lambda: resnet50()``; its weights do not matter.
    device : torch.device or str
        Where the model shall be.
    optimized : bool, default True
        Of a file with forms of :func:`nni_gconv.optimize` build these, for inference only; a layer
        whose form is not known here stays as it is. False: the small model, to be trained.

    Returns
    -------
    nn.Module
        In eval mode; its outputs are those of the model saved, bit for bit.

    Raises
    ------
    CheckpointError
        See :func:`read_plan`; also when the weights are not those that were written, or
        `model_fn` makes another architecture.
    ConfigError
        `model_fn` is a model, or makes none.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> _ = save_compact(nn.Sequential(nn.Linear(4, 2)), file)
    >>> load_compact(file, lambda: nn.Sequential(nn.Linear(4, 8)))
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    found = read_plan(path)
    model = _made(model_fn)
    try:
        model = rebuild(model, found["plan"], initialise=False, where=str(path))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds a plan that cannot be read: {error!r}") from error
    state = {}
    with safe_open(Path(path), framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - a safe_open handle is no dict
            state[name] = file.get_tensor(name)
    _untie(model, state, found["ties"])
    own = model.state_dict(keep_vars=True)
    written = {id(own[name]) for name in state if name in own}
    missing = [n for n, t in own.items() if n not in state and id(t) not in written]
    unexpected = [n for n in state if n not in own]
    if missing or unexpected:
        kind, names = ("lacks", missing) if missing else ("has unknown", unexpected)
        raise CheckpointError(f"{path} {kind} {names[0]} and {len(names) - 1} more tensors")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, its plan {tuple(own[name].shape)}"
            )
        # Not copied into the old memory: a model saved in half precision comes back as one. Copied
        # all the same: in the file's memory they lie unaligned, and some kernels round otherwise.
        own[name].data = tensor.clone()
    if weights_digest(state) != found["weights_sha256"]:
        raise CheckpointError(f"{path}: the weights were changed after the file was written")
    loaded = {name: own[name].detach() for name in state}
    if weights_digest(loaded) != found["weights_sha256"]:
        raise CheckpointError(f"{path}: layers share weights in the model that do not in the file")
    return _in_forms(model.to(device).eval(), found["plan"] if optimized else {}, path)


def _made(model_fn: Any) -> nn.Module:
    if isinstance(model_fn, nn.Module) or not callable(model_fn):
        raise ConfigError(
            "model_fn: expected a function that makes the dense model, such as lambda: resnet50(), "
            f"got {model_fn if isinstance(model_fn, str) else type(model_fn).__name__!r}"
        )
    model = model_fn()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model_fn: made a {type(model).__name__!r}, not a model")
    return model


def _in_forms(model: nn.Module, plan: Mapping[str, Any], path: str | Path) -> nn.Module:
    """Build the forms that a plan names, if it does."""
    if "forms" not in plan:
        return model
    try:
        forms = FormPlan.from_dict(plan["forms"])
        return mark_optimized(apply_forms(model, forms), Optimized(model, forms))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds forms that cannot be built: {error!r}") from error


def _untie(model: nn.Module, state: Mapping[str, Tensor], ties: Mapping[str, str]) -> None:
    """Give tensors that the model shares and the file does not an own place for each."""
    stands_for: dict[int, str] = {}
    given: dict[str, Tensor] = {}
    for name, old in model.state_dict(keep_vars=True).items():
        source = name if name in state else ties.get(name, stands_for.get(id(old), name))
        if source not in given:
            is_taken = stands_for.setdefault(id(old), source) != source
            given[source] = copy.deepcopy(old) if is_taken else old
        if given[source] is not old:
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, given[source])
