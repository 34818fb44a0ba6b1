"""A model as a graph of torch operators.

The forward runs once on fake tensors (:mod:`nni_gconv.graph.recorder`), and every ATen operator it
meets is written down with the shape of each value, the module it was called from and the line of
the user's code. All that follows (channels, constants, slicing) reads this graph and nothing else,
so it knows operators, not module types.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from nni_gconv import compat
from nni_gconv.errors import TraceError, check_layers
from nni_gconv.graph.norms import norms_as_operators
from nni_gconv.graph.recorder import is_users, op_name, record, shape_of
from nni_gconv.graph.sizes import Attribute, Call, SizeLog, watch_sizes
from nni_gconv.modes import evaluating, forward_of_training

#: Image sizes tried, in this order, for a model whose input nobody described.
_GUESSED_SIZES = (32, 224, 28, 64, 96, 128, 299, 256, 8, 16)

#: Operators below which a buffer is a variance: masked it would divide by nothing.
_ROOTS = frozenset("rsqrt sqrt reciprocal pow log div".split())


@dataclass(frozen=True)
class Graph:
    """Traced operators of one model.

    Attributes
    ----------
    nodes : tuple of torch.fx.Node
        Operators in the order they run, placeholders first and the output last.
    tensors : dict of str to str
        Name of a placeholder node -> dotted name of the parameter or buffer it stands for, the
        first of its names.
    buffers : frozenset of str
        The dotted names in `tensors` that are buffers.
    inputs : tuple of torch.fx.Node
        The placeholders that stand for tensors among the arguments, in order.
    aliases : dict of str to tuple of str
        Dotted name -> all dotted names under which the same tensor is registered.
    modules : dict of str to nn.Module
        Dotted module name -> module of the traced model.
    constants : dict of torch.fx.Node to Tensor
        Placeholders of tensors that the forward takes from elsewhere, and what they hold.
    training : tuple of torch.fx.Node
        Operators of the forward in training mode, if that uses parameters which evaluation does
        not (auxiliary heads); else empty.
    unused : tuple of str
        Dotted names of parameters that neither uses.
    called : dict of torch.fx.Node to Call
        View, unflatten, split or chunk -> what the forward asked it for, as far as this is known.
    calls : tuple of tuple of str
        Names of all such calls in evaluation, then those in training.
    fixed : frozenset of Attribute
        Integers that modules hold and a forward uses for more than sizes.
    problem : str or None
        Why the forward in training mode could not be traced although evaluation leaves
        parameters out.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, str]
    buffers: frozenset[str]
    inputs: tuple[Node, ...]
    aliases: dict[str, tuple[str, ...]]
    modules: dict[str, nn.Module] = field(repr=False)
    constants: dict[Node, torch.Tensor] = field(default_factory=dict, repr=False)
    training: tuple[Node, ...] = ()
    unused: tuple[str, ...] = ()
    called: dict[Node, Call] = field(default_factory=dict, repr=False)
    calls: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    fixed: frozenset[Attribute] = frozenset()
    problem: str | None = None

    @property
    def all_nodes(self) -> tuple[Node, ...]:
        """Operators of evaluation, then those of training."""
        return self.nodes + self.training

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not seen of the model, one line each."""
        if not self.unused:
            return ()
        owners = dict.fromkeys(name.rpartition(".")[0] or name for name in self.unused)
        names = ", ".join(list(owners)[:3]) + (f" and {len(owners) - 3} more" * (len(owners) > 3))
        if self.problem is None:
            return (f"{names}: not used by the forward, left as they are",)
        return (
            f"{names}: not used in evaluation, and the forward in training cannot be traced; "
            f"what they read may no longer fit them ({self.problem})",
        )

    def owner(self, node: Node) -> str:
        """Return the dotted name of the innermost module that called the operator."""
        return str(node.meta.get("owner", ""))

    def caller(self, node: Node) -> nn.Module | None:
        """Return the innermost module that called the operator."""
        return self.modules.get(self.owner(node))

    def lookup(self, tensor: str) -> Tensor:
        """Return the parameter or buffer of a dotted name."""
        module, _, attribute = tensor.rpartition(".")
        return getattr(self.modules[module], attribute)

    def is_saved(self, tensor: str) -> bool:
        """Tell whether a state dict holds a tensor; a buffer may be left out of it."""
        module, _, attribute = tensor.rpartition(".")
        return attribute not in self.modules[module]._non_persistent_buffers_set

    def acts_on_channels(self, node: Node) -> bool:
        """Tell whether a buffer scales or shifts each channel: a norm's that is frozen, say.

        One that stands under a root or a fraction line is a statistic.
        """
        name = self.tensors[node.name]
        buffer = self.lookup(name)
        single = max(buffer.shape, default=1) == buffer.numel()
        if not single or not buffer.is_floating_point() or "running_" in name:
            return False
        waiting, seen = [node], {node}
        while waiting:
            for user in waiting.pop().users:
                if op_name(user) in _ROOTS:
                    return False
                # Up to where it meets the values themselves.
                if user not in seen and math.prod(shape_of(user)) == buffer.numel():
                    seen.add(user)
                    waiting.append(user)
        return True


def as_inputs(dummy_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn a tensor, a tuple of arguments or a dict of keywords into ``(args, kwargs)``."""
    if isinstance(dummy_input, Mapping):
        return (), dict(dummy_input)
    if isinstance(dummy_input, Sequence) and not isinstance(dummy_input, str):
        return tuple(dummy_input), {}
    return (dummy_input,), {}


def trace(model: nn.Module, dummy_input: Any) -> Graph:
    """Trace a model in eval mode; the model is left exactly as it was found.

    Parameters
    ----------
    model : nn.Module
        Any module whose operators do not depend on the values of tensors.
    dummy_input : Tensor, tuple or dict
        One example of the forward's arguments, on the model's device.

    Returns
    -------
    Graph

    Raises
    ------
    TraceError
        The forward depends on values of tensors, or fails on the input. Names the line.

    Examples
    --------
    >>> import torch
    >>> graph = trace(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8))
    >>> sorted(graph.tensors.values())
    ['bias', 'weight']
    """
    check_layers(model)
    args, kwargs = as_inputs(dummy_input)
    aliases = _aliases(model)
    with evaluating(model), norms_as_operators(model):
        try:
            forward = _follow(model, args, kwargs, aliases)
        except Exception as error:
            said = _explain(model, error) + compat.type_remedy(model, dummy_input)
            raise TraceError(said) from error
    training: _Forward | None = None
    problem: str | None = None
    if forward.unused:
        training, problem = _follow_training(model, args, kwargs, aliases, forward)
    return Graph(
        nodes=forward.nodes,
        tensors=forward.tensors,
        buffers=forward.buffers,
        inputs=forward.inputs,
        aliases=aliases,
        modules=dict(model.named_modules(remove_duplicate=False)),
        constants=forward.constants,
        training=training.nodes if training else (),
        unused=tuple(n for n in forward.unused if training is None or n in training.unused),
        called={**forward.called, **(training.called if training else {})},
        calls=(forward.calls, training.calls if training else ()),
        fixed=forward.fixed | (training.fixed if training else frozenset()),
        problem=problem,
    )


@dataclass(frozen=True)
class _Forward:
    """One run through the forward, in evaluation or in training."""

    nodes: tuple[Node, ...]
    tensors: dict[str, str]
    buffers: frozenset[str]
    inputs: tuple[Node, ...]
    constants: dict[Node, torch.Tensor]
    unused: tuple[str, ...]
    called: dict[Node, Call]
    calls: tuple[str, ...]
    fixed: frozenset[Attribute]


def _follow(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    aliases: Mapping[str, tuple[str, ...]],
) -> _Forward:
    # The first of the names of each tensor.
    names = {name: tensor for name, tensor in _tensors(model) if aliases[name][0] == name}
    try:
        with watch_sizes(model) as log:
            recorder = record(model, args, kwargs, names)
    except Exception:  # perhaps a forward that does not take such integers
        log = SizeLog()
        recorder = record(model, args, kwargs, names)
    nodes, tensors = tuple(recorder.graph.nodes), recorder.parameters
    buffers = frozenset(name for name in names if not isinstance(names[name], nn.Parameter))
    used = {tensors.get(n.name) for n in nodes if n.op == "placeholder" and n.users}
    used.update(buffers)  # only what is learnt is of interest
    return _Forward(
        nodes=nodes,
        tensors=tensors,
        buffers=buffers,
        inputs=tuple(recorder.inputs),
        constants=recorder.constants,
        unused=tuple(t for t in tensors.values() if t not in used),
        called=log.match(nodes, recorder.nodes),
        calls=tuple(call.name for call in log.calls),
        fixed=frozenset(log.fixed),
    )


def _follow_training(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    aliases: Mapping[str, tuple[str, ...]],
    forward: _Forward,
) -> tuple[_Forward | None, str | None]:
    """Follow what a model runs in training, if that uses more of it; else say what is wrong."""
    try:
        with forward_of_training(model), norms_as_operators(model):
            training = _follow(model, args, kwargs, aliases)
    except Exception as error:
        return None, _explain(model, error)
    if set(forward.unused) <= set(training.unused):
        return None, None
    if training.tensors != forward.tensors:
        return None, f"{type(model).__name__} has other parameters in training"
    return training, None


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in _tensors(model):
        names[id(tensor)].append(name)
    return {name: tuple(group) for group in names.values() for name in group}


def location(node: Node) -> str:
    """Say where the user's code called an operator: ``model.py:41 in forward``."""
    frames = node.meta.get("frames")
    if not frames:
        return str(node.target)
    file, line, function = frames[-1]
    return f"{file}:{line} in {function}"


def _explain(model: nn.Module, error: Exception) -> str:
    """Put the failure of a trace on one line: whose forward, which line, what it says."""
    name = type(model).__name__
    inner = error
    while inner.__cause__ is not None and isinstance(inner.__cause__, Exception):
        inner = inner.__cause__
    where = ""
    walk = inner.__traceback__
    while walk is not None:
        code = walk.tb_frame.f_code
        if is_users(code) and not code.co_filename.startswith("<"):
            where = f"{code.co_filename}:{walk.tb_lineno} in {code.co_name}"
        walk = walk.tb_next
    first = compat.reason_of(inner)
    place = f" at {where}" if where else ""
    return f"cannot trace {name}{place}: {first}"


def example_input(model: nn.Module) -> torch.Tensor:
    """Guess an input for an image model that came without one.

    Channels are found by trial on the first convolution, the size by trying common image sizes;
    coupling of channels does not depend on the size, so any that runs will do.

    Raises
    ------
    TraceError
        No common image size fits; the caller has to say ``dummy_input=``.
    """
    first = next(
        (m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None
    )
    tensor = next(model.parameters(), torch.zeros(()))
    if first is not None:
        spatial = len(first.kernel_size)
        with evaluating(model), torch.no_grad():
            for size in _GUESSED_SIZES:
                shape = (1, first.in_channels, *[size] * spatial)
                dummy = torch.zeros(shape, device=tensor.device, dtype=tensor.dtype)
                try:
                    model(dummy)
                except (RuntimeError, ValueError, IndexError, TypeError):
                    continue
                return dummy
    raise TraceError(f"no common image size runs through {type(model).__name__}: pass dummy_input=")
