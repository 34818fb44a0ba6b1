"""What masks leave of each coupled set, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nni_gconv.display import Table
from nni_gconv.graph import CoupledSet
from nni_gconv.pruning.selection.skipped import listed


def channel_table(
    title: str,
    sets: Sequence[CoupledSet],
    masks: Mapping[str, Mapping[str, Any]],
    skipped: Mapping[str, str],
) -> Table:
    """Show each set: its layers, how many channels stay, and why a layer was not pruned.

    Parameters
    ----------
    title : str
        Heading.
    sets : sequence of CoupledSet
        A row each.
    masks : mapping
        ``{layer: {"weight": mask or None}}``.
    skipped : mapping of str to str
        Layers that keep all channels, each with the reason.
    """
    table = Table("layers", "channels", "kept", "note", title=title)
    for coupled in sets:
        member = coupled.members[0]
        mask = masks[member.module]["weight"]
        kept = coupled.size
        if mask is not None:
            alive = mask.movedim(member.dim, 0).flatten(1).any(1).cpu().numpy()[member.rows]
            kept = len(np.unique(member.units[alive]))
        names = listed(list(dict.fromkeys(m.module for m in coupled.members)))
        table.add_row(names, str(coupled.size), str(kept), "")
    for name, reason in skipped.items():
        table.add_row(name, "", "all", reason)
    return table
