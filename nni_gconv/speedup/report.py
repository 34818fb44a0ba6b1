"""What a speedup did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from torch import Tensor, nn

from nni_gconv.display import Table, as_html, as_text
from nni_gconv.groupconv import gathers_of, groups_of, unwrapped
from nni_gconv.speedup.plan import Cut
from nni_gconv.speedup.residual import Thinned


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after.

    Attributes
    ----------
    name, type : str
        Dotted name and class.
    before, after : tuple of int
        Shape of the weight: filters, and input channels of each group; zeros of a layer that went
        with its block.
    groups : int
        Groups after; 1 for a dense layer.
    removed : int
        Filters that went.
    gathers : int
        Index operations in front of the layer and behind it.
    """

    name: str
    type: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int
    removed: int
    gathers: int


@dataclass(frozen=True)
class SpeedupReport:
    """What a speedup did.

    Attributes
    ----------
    layers : tuple of LayerChange
        Every layer with weights, in the order of the model.
    notes : tuple of str
        What stayed although its mask asked for less, and what was zeroed, one line each.
    gathers : int
        Index operations the small model has to run for permutations that could not be folded.
    difference : float or None
        Largest relative difference of the outputs seen in verification; None if not verified.
    """

    layers: tuple[LayerChange, ...]
    notes: tuple[str, ...]
    gathers: int
    difference: float | None

    def __str__(self) -> str:
        """The table, the notes and what verification saw."""
        return as_text(*self._shown())

    def __rich__(self) -> Group:
        """The same, for rich."""
        return Group(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> list[Table | str]:
        notes = [f"note: {note}" for note in self.notes]
        seen = (
            "not verified"
            if self.difference is None
            else f"verified in float64: masked and small model differ by {self.difference:.1e}"
        )
        return [self.table(), *notes, f"{seen}; gathers: {self.gathers}"]

    def table(self) -> Table:
        """Return the layers as a table; ``print`` shows it."""
        heads = ("layer", "type", "before", "after", "groups", "removed", "gathers")
        table = Table(*heads, title="speedup")
        for row in self.layers:
            table.add_row(
                row.name, row.type, _widths(row.before), _widths(row.after), str(row.groups),
                str(row.removed), str(row.gathers),
            )  # fmt: skip
        return table


def _widths(shape: tuple[int, ...]) -> str:
    return " × ".join(str(s) for s in shape)


def weight_shapes(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the class and the first two dimensions of every layer's weight, by its name."""
    shapes = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            shapes[name] = type(module).__name__, tuple(weight.shape[:2])
    return shapes


def layer_changes(
    model: nn.Module, before: dict[str, tuple[str, tuple[int, ...]]]
) -> tuple[LayerChange, ...]:
    """Compare a small model with the :func:`weight_shapes` of the dense one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    changes = []
    for name, (kind, shape) in before.items():
        there = modules.get(name)
        layer: Any = None if there is None else unwrapped(there)
        after = (0,) * len(shape) if layer is None else tuple(layer.weight.shape[:2])
        changes.append(
            LayerChange(
                name=name,
                type=kind,
                before=shape,
                after=after,
                groups=groups_of(layer),
                removed=shape[0] - after[0],
                gathers=0 if there is None else len(gathers_of(there)),
            )
        )
    return tuple(changes)


def speedup_notes(cut: Cut, thinned: Thinned) -> tuple[str, ...]:
    """Tell what the masks did not say themselves."""
    notes = [
        f"{name}: {len(positions)} values zeroed with the filters they follow"
        for name, positions in cut.zeroed.items()
    ]
    notes += [
        text if "one channel" in text else f"{text} ({n})" for text, n in cut.decision.held.items()
    ]
    told = np.zeros(cut.channels.count, bool)
    for role, what in (("row", "stay as zeros"), ("scale", "stay")):
        for axis in cut.channels.axes.values():
            mask = thinned.masks.get(axis.tensor)
            shift = role == "scale" and not axis.tensor.endswith("weight")
            if axis.role != role or mask is None or shift:
                continue
            if role == "row" and mask.dim() > 1:
                live = thinned.wiring.of(axis.tensor).any(1 - axis.dim)
            else:
                live = mask.movedim(axis.dim, 0).reshape(mask.shape[axis.dim], -1).any(1)
            dead = ~live.numpy()
            of = cut.channels.of(axis.labels)
            stay = of[dead & ~cut.decision.removed[of] & ~(told[of] & (role == "scale"))]
            if len(stay):
                pinned = cut.channels.pinned
                reasons = sorted({pinned[c] for c in stay if c in pinned})
                why = reasons[0] if reasons else "what it is coupled to is not masked"
                notes.append(f"{axis.tensor}: {len(stay)} masked channels {what}: {why}")
                told[stay] = True
    return tuple(notes)
