"""Masks in, a smaller and equal model out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from nni_gconv import compat
from nni_gconv.errors import ConfigError, SpeedupError, check_model
from nni_gconv.graph import (
    Graph,
    Masks,
    Wiring,
    as_inputs,
    balances,
    decide,
    find_grouped,
    load_masks,
    location,
    map_channels,
    module_calls,
    read_masks,
    shape_of,
    silence,
    trace,
)
from nni_gconv.modes import evaluating, forward_of_training
from nni_gconv.speedup.cut import Replaced, apply_plan
from nni_gconv.speedup.grouping import group_layers
from nni_gconv.speedup.optimizer import rebind
from nni_gconv.speedup.plan import Plan, make_plan
from nni_gconv.speedup.report import SpeedupReport, layer_changes, speedup_notes, weight_shapes
from nni_gconv.speedup.residual import without_dead_blocks
from nni_gconv.speedup.verify import (
    mask_parameters,
    precise_copy,
    uneven_part,
    verify_equal,
)

#: A forward that holds this many different literal widths is not worth another attempt.
_MAX_RETRIES = 32


class ModelSpeedup:
    """Turn a masked model into a small one that gives the same outputs.

    Everything is read from the masks: channels whose filters, or all whose readers, are masked are
    removed together with what is coupled to them; what cannot go because of a sum, a group or a
    literal width in the forward stays as zeros. A residual block whose branch is masked altogether
    is exchanged for what lies beside the branch. The model's class and forward are kept; its layers
    stay plain torch modules with smaller tensors. The model given is changed in place, as NNI's
    class of this name does, but only after a copy has passed verification.

    Parameters
    ----------
    model : nn.Module
        The unwrapped model (``pruner.unwrap_model()`` first).
    dummy_input : Tensor, tuple or dict
        Example arguments of the forward, on the model's device.
    masks_or_file : dict, str or Path
        ``{module: {target: 0/1 tensor}}`` as ``pruner.compress()`` returns, or a file of it.
    fold_permutations : bool, default True
        Fold the channel permutations that block-diagonal masks need into neighbouring weights.
    verify : bool, default True
        Compare masked and small model in float64 before the model is touched.
    constants : {"silence", "fold"}, default "silence"
        Masks that zero a filter but not the batch norm behind it leave a constant. ``"silence"``
        masks the norm too (the outputs change by what the constant was worth; reported).
        ``"fold"`` adds the constant to the biases of its readers wherever that is exact and keeps
        the channel where it is not.
    seed : int, default 0
        Seed of the random inputs of the verification.

    Raises
    ------
    TraceError, CheckpointError, SpeedupError
        From :meth:`speedup_model`; each names the line or the layer.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> mask = torch.ones(8, 3, 3, 3)
    >>> mask[2:5] = 0
    >>> bias = torch.ones(8)
    >>> bias[2:5] = 0
    >>> masks = {"0": {"weight": mask, "bias": bias}}
    >>> small = ModelSpeedup(net, torch.zeros(1, 3, 8, 8), masks).speedup_model()
    >>> small[0].out_channels, small[2].in_channels
    (5, 5)
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        masks_or_file: Masks | str | Path,
        *,
        fold_permutations: bool = True,
        verify: bool = True,
        constants: Literal["silence", "fold"] = "silence",
        seed: int = 0,
    ) -> None:
        if constants not in ("silence", "fold"):
            raise ConfigError(f"constants: {constants!r} is not allowed (allowed: fold, silence)")
        check_model(model)
        if compat.is_wrapped(model):
            raise SpeedupError("the model is still wrapped by a pruner: call pruner.unwrap_model()")
        self.model = model
        self.dummy_input = dummy_input
        self.fold_permutations = fold_permutations
        self.verify = verify
        self.constants = constants
        self.seed = seed
        self._masks = (
            load_masks(masks_or_file) if isinstance(masks_or_file, str | Path) else masks_or_file
        )
        self._report: SpeedupReport | None = None
        self.plan: Plan | None = None
        self._replaced: list[Replaced] = []
        self._before: list[Tensor] = []

    def speedup_model(self) -> nn.Module:
        """Make the model small, in place, and return it."""
        dense = trace(self.model, self.dummy_input)
        asked = read_masks(self.model, self._masks, dense.aliases)
        thinned = without_dead_blocks(
            self.model, self.dummy_input, dense, asked, silently=self.constants == "silence"
        )
        graph, masks = thinned.graph, thinned.masks
        wiring = Wiring(graph, masks)  # silence adds nothing to weights: it serves throughout
        pins: dict[Node, str] = {}
        no_change: dict[str, Tensor] = {}
        for _ in range(_MAX_RETRIES):
            channels = map_channels(graph, pin=pins.items())
            kept, silenced = masks, no_change
            if self.constants == "silence":
                kept, silenced = silence(graph, channels, masks, wiring)
            grouped = find_grouped(graph, channels, wiring)
            balanced = replace(
                channels, balances=(*channels.balances, *balances(channels, grouped))
            )
            decision = decide(graph, balanced, kept, wiring, fold=self.constants == "fold")
            groups, order, left = group_layers(
                channels, decision.removed, grouped, fold=self.fold_permutations
            )
            plan = make_plan(graph, channels, kept, decision, order, groups)
            small = thinned.copy_of(self.model)
            ready = apply_plan(small, graph, plan, kept)
            blocked = self._try_forward(small, graph, pins)
            if blocked is None and channels.halvings:
                blocked = uneven_part(small, self.dummy_input, graph, channels, decision.removed)
            if blocked is None:
                break
            pins[blocked] = f"a width is written in the forward, met at {location(blocked)}"
        else:
            raise SpeedupError("the forward holds too many literal widths to work around")
        difference = None
        if self.verify:
            # Cut anew in float64: constants folded into biases are rounded in the model's own.
            masked = precise_copy(self.model)
            small = thinned.copy_of(masked)
            apply_plan(small, graph, plan, kept)
            # Only now: the small model has to be masked by the plan, not by what it is cut from.
            mask_parameters(masked, {**thinned.gone, **kept}, dense.aliases)
            difference = verify_equal(
                masked,
                small,
                self.dummy_input,
                graph=graph,
                channels=channels,
                order=order,
                seed=self.seed,
            )
        before, self._before = weight_shapes(self.model), list(self.model.parameters())
        thinned.thin(self.model)
        self._replaced = apply_plan(self.model, graph, plan, kept, ready)
        self.plan = plan
        notes = (
            *thinned.notes, *speedup_notes(channels, masks, silenced, decision), *left,
            *graph.notes,
        )  # fmt: skip
        changes = layer_changes(self.model, before)
        gathers = sum(change.gathers for change in changes)
        self._report = SpeedupReport(changes, notes, gathers, difference)
        return self.model

    def report(self) -> SpeedupReport:
        """Return what was done, per layer; call :meth:`speedup_model` first."""
        if self._report is None:
            raise SpeedupError("nothing to report yet: call speedup_model() first")
        return self._report

    def rebind_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Let an optimizer of the dense model go on with the small one.

        Its parameters are exchanged for the small model's, and what it remembers of them
        (momentum, Adam's averages) is cut as the parameters were; what it remembers of masked
        weights is zeroed, so that they stay zero.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Made from the parameters of the (unwrapped) model before :meth:`speedup_model`; changed
            in place. Learning rates and schedules stay.

        Returns
        -------
        torch.optim.Optimizer
            The same object.

        Raises
        ------
        SpeedupError
            The optimizer holds a parameter that the model does not have.

        Examples
        --------
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> masks = {"0": {"weight": torch.ones(8, 3, 3, 3), "bias": torch.ones(8)}}
        >>> masks["0"]["weight"][:2] = masks["0"]["bias"][:2] = 0
        >>> speedup = ModelSpeedup(net, torch.zeros(1, 3, 8, 8), masks)
        >>> _ = speedup.speedup_model()
        >>> speedup.rebind_optimizer(optimizer).param_groups[0]["params"][0].shape
        torch.Size([6, 3, 3, 3])
        """
        self.report()
        rebind(optimizer, self._replaced, self.model, self._before)
        return optimizer

    def _try_forward(self, small: nn.Module, graph: Graph, pins: dict[Node, str]) -> Node | None:
        """Run the small model; if it fails at a literal width, return the operator to pin."""
        args, kwargs = as_inputs(self.dummy_input)
        forwards: list[tuple[Any, tuple[Node, ...]]] = [
            (evaluating, graph.nodes),
            (forward_of_training, graph.training),
        ]
        for mode, nodes in forwards if graph.training else forwards[:1]:
            try:
                with mode(small), torch.no_grad(), module_calls(small) as running:
                    result = small(*args, **kwargs)
            except Exception as error:
                node = _culprit(graph, pins, running)
                if node is None:
                    raise SpeedupError(
                        f"the small model does not run: {_one_line(error)}"
                    ) from error
                return node
            got = [tuple(x.shape) for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
            dense = [shape_of(n) for n in pytree.tree_leaves(nodes[-1].args) if shape_of(n)]
            if [s for s in got if s] != dense:
                raise SpeedupError(
                    f"the small model's outputs would have other shapes, {got} and not {dense}: "
                    "the forward depends on the width of a layer"
                )
        return None


def _culprit(graph: Graph, pins: dict[Node, str], running: list[str]) -> Node | None:
    """Find the traced operator at which the small model's forward just failed."""
    walk = sys.exc_info()[2]
    lines = []
    while walk is not None:
        file = walk.tb_frame.f_code.co_filename
        if not compat.is_torch_file(file) and file != __file__:
            lines.append((file, walk.tb_lineno))
        walk = walk.tb_next
    free = [n for n in graph.all_nodes if n.op == "call_function" and n not in pins]
    inside = [n for n in free if running and graph.owner(n) == running[-1]]
    for place in reversed(lines):
        for nodes in (inside, free):
            for node in nodes:
                frames = node.meta.get("frames", ())
                if place in {(file, line) for file, line, _ in frames}:
                    return node
    return inside[0] if inside else None


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
