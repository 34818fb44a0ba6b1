"""Masks as NNI writes them, read strictly, and the connections they leave inside a layer.

NNI's masks are ``{module: {target: 0/1 tensor}}`` or a file of it; here they are bool tensors by
parameter name, True where a parameter is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nni_gconv.errors import CheckpointError, unknown_name
from nni_gconv.graph.trace import Graph

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Masks = Mapping[str, Mapping[str, Tensor | None]]


def load_masks(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read masks from a file.

    Parameters
    ----------
    path : str or Path
        A ``.safetensors`` file with keys ``module.target`` or a torch file of NNI's mask dict
        (saved as plain dicts; nothing in the file is executed).

    Raises
    ------
    CheckpointError
        The file is missing, damaged or holds no masks.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no mask file at {path}")
    try:
        if path.suffix == ".safetensors":
            masks: dict[str, dict[str, Tensor]] = {}
            for key, tensor in load_file(path).items():
                module, _, target = key.rpartition(".")
                masks.setdefault(module, {})[target] = tensor
            return masks
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read as masks ({first}); save NNI's masks as plain dicts: "
            "torch.save({k: dict(v) for k, v in masks.items()}, path)"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Mapping) for v in loaded.values()):
        raise CheckpointError(f"{path} holds no masks: expected {{module: {{target: tensor}}}}")
    return loaded


def read_masks(
    model: nn.Module, masks: Masks, aliases: Mapping[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """Turn NNI's masks into bool tensors by parameter name, checked against the model.

    Parameters
    ----------
    model : nn.Module
        The unwrapped model the masks were made for.
    masks : mapping
        ``{module: {target: tensor or None}}``; None and all-ones masks are left out.
    aliases : mapping of str to tuple of str
        Dotted name -> all names of the same tensor.

    Returns
    -------
    dict of str to bool Tensor
        First alias of each masked parameter -> True where it is kept.

    Raises
    ------
    CheckpointError
        A module, target or shape does not belong to the model.
    """
    if not isinstance(masks, Mapping):
        raise CheckpointError(
            f"masks: expected {{module: {{target: tensor}}}} or a file, got {type(masks).__name__}"
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    kept: dict[str, Tensor] = {}
    for module_name, targets in masks.items():
        module = _module(module_name, modules, aliases)
        if not isinstance(targets, Mapping):
            raise CheckpointError(
                f"masks: {module_name} must hold {{target: tensor}}, not {type(targets).__name__}"
            )
        for target, mask in targets.items():
            name = f"{module_name}.{target}" if module_name else target
            tensor: Tensor | None = module._parameters.get(target)
            if tensor is None and target not in _STATISTICS:  # a norm's scale that is frozen
                tensor = module._buffers.get(target)
            live = None if mask is None else _live(name, mask, tensor)
            if live is not None:
                first = aliases[name][0]
                kept[first] = kept[first] & live if first in kept else live
    return kept


def _module(
    name: str, modules: Mapping[str, nn.Module], aliases: Mapping[str, tuple[str, ...]]
) -> nn.Module:
    if name in modules:
        return modules[name]
    if name in aliases:
        module, _, target = name.rpartition(".")
        raise CheckpointError(
            f"masks: {name} is a parameter; write {{{module!r}: {{{target!r}: mask}}}}"
        )
    names = [known for known in modules if known]
    raise CheckpointError(unknown_name("module", name, names, "masks"))


def _live(name: str, mask: object, parameter: Tensor | None) -> Tensor | None:
    """Return where a mask keeps, as bool on the CPU; None where it keeps everything."""
    if not isinstance(mask, Tensor):
        raise CheckpointError(f"masks: {name} must be a tensor, not {type(mask).__name__}")
    # A copy: masks belong to their owner. Of bools there is nothing to check, which is quicker.
    live = mask.clone() if mask.dtype == torch.bool else mask != 0
    if mask.dtype != torch.bool and not torch.equal(mask == 1, live):
        strange = mask[(mask != 1) & live]
        raise CheckpointError(
            f"masks: {name} must hold zeros and ones, it has {strange.flatten()[0].item()!r}"
        )
    whole = bool(live.all())
    if parameter is None and not whole:
        raise CheckpointError(
            f"masks: {name} is not a parameter; masks of inputs, outputs and computed "
            "weights cannot be cut"
        )
    if parameter is not None and live.shape != parameter.shape:
        raise CheckpointError(
            f"masks: {name} has shape {tuple(parameter.shape)}, its mask {tuple(live.shape)}"
        )
    return None if whole else live.cpu()


class Wiring:
    """Which input position of a layer reaches which of its filters, worked out once a weight.

    Parameters
    ----------
    graph : Graph
        The traced model.
    kept : mapping of str to bool Tensor
        Masks by parameter name.
    """

    def __init__(self, graph: Graph, kept: Mapping[str, Tensor]) -> None:
        self._graph, self._kept = graph, kept
        self._made: dict[str, Tensor] = {}

    def masked(self, weight: str) -> bool:
        """Tell whether a weight has a mask that is not all ones."""
        return weight in self._kept

    def of(self, weight: str, transposed: bool = False) -> Tensor:
        """Return a bool Tensor of shape (filters, positions)."""
        if weight not in self._made:
            kept = self._kept.get(weight)
            if kept is None:
                shape = self._graph.lookup(weight).shape[:2]
                self._made[weight] = torch.ones(shape, dtype=torch.bool)
            else:
                # NumPy is several times faster than torch at short rows of bools.
                flat = kept if kept.dim() == 2 else kept.flatten(2)
                made = flat.numpy() if flat.dim() == 2 else flat.numpy().any(2)
                self._made[weight] = torch.from_numpy(made)
        return self._made[weight].T if transposed else self._made[weight]
