"""What pruners that leave group convolutions have in common: their layers, masks and table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from numpy.typing import NDArray
from torch import nn

from nni_gconv import compat
from nni_gconv.display import Table
from nni_gconv.errors import ConfigError
from nni_gconv.groupconv.partition import Partition, l2
from nni_gconv.pruning.group_sides import LiveLayer
from nni_gconv.pruning.options import PrunerOptions
from nni_gconv.pruning.pruner import Masks, TrainedPruner
from nni_gconv.pruning.selection.earlier_masks import check_unmasked
from nni_gconv.pruning.selection.skipped import main_reasons, skip_lines

_logger = logging.getLogger(__name__)


def count_on_the_way(counts: Sequence[int], share: float) -> int:
    """Return the group count that a layer has while its goal is approached.

    Of G groups one G-th of the kernels is left: the most groups that remove at most the share
    asked for of what the goal removes.

    Parameters
    ----------
    counts : sequence of int
        Group counts on the way, ascending from 1; the last is the goal.
    share : float
        From 0 to 1.

    Examples
    --------
    >>> [count_on_the_way((1, 2, 4, 8), share) for share in (0, 0.5, 0.6, 0.9, 1)]
    [1, 1, 2, 4, 8]
    """
    most = share * (1 - 1 / counts[-1]) + 1e-9
    return max(count for count in counts if 1 - 1 / count <= most)


class GroupPruner(TrainedPruner):
    """Base of pruners whose masks leave groups of filters and input channels.

    Parameters
    ----------
    model, evaluator, existed_wrappers
        As in NNI.
    layers : mapping of str to LiveLayer
        Convolutions, in the order in which they run.
    groups : mapping of str to int
        Number of groups of those that are grouped, or the largest it may become.
    skipped : mapping of str to str
        Layers that were selected and stay dense, each with the reason.
    options : PrunerOptions
        As they were given; group counts rise with a `schedule`, see :func:`count_on_the_way`.

    Attributes
    ----------
    groups : dict of str to int
        Number of groups of each layer that is grouped.
    partitions : dict of str to Partition
        How each was split, of the channels that are alive.
    skipped : dict of str to str
        As given.

    Raises
    ------
    ConfigError
        There is nothing to group.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, LiveLayer],
        groups: Mapping[str, int],
        skipped: Mapping[str, str],
        evaluator: Evaluator | None,
        existed_wrappers: dict[str, ModuleWrapper] | None,
        options: PrunerOptions,
    ) -> None:
        if not groups:
            reasons = main_reasons(skipped) or "none is asked for more than one group"
            raise ConfigError(f"config_list: no layer can be grouped: {reasons}")
        self.groups, self.skipped = dict(groups), dict(skipped)
        self.partitions: dict[str, Partition] = {}
        self._live = dict(layers)
        for line in skip_lines(self.skipped):
            _logger.warning(line)
        check_unmasked(existed_wrappers, list(groups))
        compat.register_pruning_types(model, list(groups))
        # Of what the layer holds: groups that it has already remove nothing any more.
        self._ratios = {name: 1 - layers[name].had / count for name, count in groups.items()}
        entries = [
            {"op_names": [name], "target_names": ["weight"], "sparse_ratio": ratio}
            for name, ratio in self._ratios.items()
        ]
        super().__init__(model, entries, evaluator, existed_wrappers, **dict(options))

    def _so_far(self, name: str, counts: Sequence[int]) -> int:
        """Group count of a layer now, by our schedule or one of NNI's, which move the ratios."""
        goal, ratio = self._ratios[name], self._target_spaces[name]["weight"].sparse_ratio
        share = ratio / goal if goal and ratio is not None else 1.0
        return count_on_the_way(counts, self.share * share)

    def _weight(self, name: str) -> nn.Parameter:
        """Return the weight that is trained; NNI holds it while the model is wrapped."""
        weight: nn.Parameter = self._target_spaces[name]["weight"].target
        return weight

    def _masks(self) -> Masks:
        """Masks of the partitions."""
        masks: Masks = {}
        for name, live in self._live.items():
            if name not in self.groups:
                continue
            weight = self._weight(name)
            inside = live.mask(self.partitions[name])
            view = (*inside.shape, *[1] * (weight.dim() - 2))
            masks[name] = {"weight": inside.to(weight).view(view).expand_as(weight).contiguous()}
        return masks

    def kernel_norms(self) -> dict[str, tuple[NDArray[np.float64], Partition]]:
        """Return the kernel norms (F, C) of each layer that is split, and how it is split.

        Of the weights as they are, masks not applied, and of the channels that are alive.
        """
        found = {}
        for name, part in self.partitions.items():
            if part.num_groups > 1:
                live = self._live[name]
                norms = l2(self._weight(name)).detach().double().cpu().numpy()
                found[name] = (live.unfolded(norms)[np.ix_(live.rows, live.columns)], part)
        return found

    def table(self) -> Table:
        """Show each layer: its groups, the share of the score they keep, and what stays dense."""
        table = Table("layer", "filters", "channels", "groups", "score kept", "at most", "note")
        for name, count in self.groups.items():
            live, part = self._live[name], self.partitions.get(name)
            kept = most = ""
            if part is not None and part.total > 0:
                kept = f"{part.fraction:.1%}"
                most = f"{min(part.bound / part.total, 1):.1%}"
            table.add_row(name, *map(str, live.alive), str(count), kept, most, "")
        for name, reason in self.skipped.items():
            table.add_row(name, "", "", "1", "", "", reason)
        return table
