"""When a coupled set of channels takes a whole residual block with it.

What a branch emits follows from its layers alone once all channels of one of them are dead: it is
a constant. Masked whole, its last layer makes that zero, and the speedup takes the block out.

Of the block remains what lies beside the branch, layers that were not selected included. It stays
whole where an earlier pruner holds a layer of the branch or the config_list excludes one, and where
channels of the dead one are to stay (``min_channels`` above 1, a ratio, ``max_sparse_ratio``).
Elsewhere each layer keeps a channel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

from torch import Tensor

from nni_gconv.graph import Branch, CoupledSet, Coupling, find_branches, known_operands


class DeadBlocks:
    """Branches of residual blocks, and the coupled sets inside them.

    Parameters
    ----------
    coupling : Coupling
        The traced model.
    sets : sequence of CoupledSet
        Those that a pruner may take channels from.
    excluded : collection of str
        Layers that have to stay; their blocks do too.

    Attributes
    ----------
    ends : tuple of str
        The layers that are masked whole where a block goes.

    Examples
    --------
    >>> import torch
    >>> from torchvision.models import resnet18
    >>> coupling = Coupling.trace(resnet18(), torch.zeros(1, 3, 32, 32))
    >>> blocks = DeadBlocks(coupling, coupling.sets)
    >>> blocks.ends[:2]
    ('layer1.0.bn2', 'layer1.1.bn2')
    >>> inner = [i for i, s in enumerate(coupling.sets) if s.name == "layer1.0.conv1"]
    >>> blocks.taken_by(inner) == (set(inner), ["layer1.0.bn2"])
    True
    """

    def __init__(
        self, coupling: Coupling, sets: Sequence[CoupledSet], excluded: Collection[str] = ()
    ) -> None:
        self._coupling, self._sets = coupling, sets
        self._branches: list[tuple[Branch, frozenset[int]]] = []
        self._silent: set[str] = set()  # ends that are zero without masks of their own
        for branch in find_branches(coupling.graph):
            layers = set(branch.layers)
            inner = frozenset(
                index
                for index, coupled in enumerate(sets)
                if all(member.module in layers for member in coupled.members)
            )
            if inner and not layers & set(excluded):
                self._branches.append((branch, inner))
                bias = getattr(coupling.graph.modules[branch.end], "bias", None)
                if bias is None and self._emits(branch, inner) == {0.0}:
                    self._silent.add(branch.end)
        ends = dict.fromkeys(branch.end for branch, _ in self._branches)
        self.ends = tuple(end for end in ends if end not in self._silent)
        self._decides = cache(self._follows)

    def taken_by(self, dead: Collection[int]) -> tuple[set[int], list[str]]:
        """Find what goes with sets of which every channel is dead.

        Parameters
        ----------
        dead : collection of int
            Their positions among the sets.

        Returns
        -------
        sets : set of int
            All sets inside the branches that emit a constant.
        ends : list of str
            The layers that make these branches zero, masked whole.
        """
        taken: set[int] = set()
        ends: list[str] = []
        for number, (branch, inner) in enumerate(self._branches):
            if any(index in dead and self._decides(number, index) for index in sorted(inner)):
                taken |= inner
                ends += [branch.end] * (branch.end not in self._silent)
        return taken, ends

    def _follows(self, number: int, index: int) -> bool:
        """Tell whether a branch emits a constant when a set is silent."""
        return self._emits(self._branches[number][0], {index}) is not None

    def _emits(self, branch: Branch, silent: Collection[int]) -> set[float] | None:
        """Find the numbers that a branch emits when sets are silent; None: not certain."""
        removed = self._coupling.empty()
        for index in silent:
            removed[self._sets[index].classes] = True
        kept = {
            f"{module}.{target}": mask != 0
            for module, targets in self._coupling.masks(removed).items()
            for target, mask in targets.items()
        }
        operands = known_operands(self._coupling.graph, kept)[branch.addition]
        value = operands[list(branch.addition.args).index(branch.value)]
        if not isinstance(value, Tensor) or bool(value.isnan().any()):
            return None
        return set(value.unique().tolist())
