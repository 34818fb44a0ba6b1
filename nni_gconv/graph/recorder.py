"""One run of a forward on fake tensors, written down as a graph of torch operators.

Fake tensors know their shape, type and device and hold no numbers, so a large network costs as
little as a small one. A dispatch mode above them sees every ATen operator; in inference mode torch
hands it a convolution, a linear layer or a batch norm whole, before taking it apart.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nni_gconv import compat
from nni_gconv.graph.restore import refuse_leaks, state_kept

#: Source file, line, function.
Frame = tuple[str, int, str]

_OWN = tuple(
    str(Path(__file__).parent / f"{name}.py")
    for name in (
        "recorder",
        "restore",
        "sizes/origins",
        "trace",
        "norms/operator",
        "weights/standard",
    )
)
#: Operators that turn a tensor into a Python number.
_TO_NUMBER = frozenset(("_local_scalar_dense", "item", "is_nonzero"))
#: Constants with more elements are not worked out.
_FEW = 64
_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: Mapping[str, Tensor],
) -> Recorder:
    """Run a forward on fake tensors; what it leaves in its modules is taken away again.

    Parameters
    ----------
    model : nn.Module
        In the mode to follow.
    args, kwargs
        Arguments of the forward; only the shapes, types and devices of tensors matter.
    names : mapping of str to Tensor
        Dotted name -> parameter or buffer, each tensor once.

    Returns
    -------
    Recorder
        Its ``graph`` is complete: placeholders of `names` and then of the inputs in order, the
        operators, the output.

    Raises
    ------
    TypeError
        An argument or a result holds objects in which tensors cannot be found.
    Exception
        Whatever the forward raises.
    """
    with (
        torch.inference_mode(),
        torch.compiler.set_stance("force_eager"),
        compat.fake_tensors() as fake,
        compat.plain_attention(),
    ):
        recorder = Recorder(fake)
        recorder.parameters = {
            recorder.placeholder(name.replace(".", "_"), tensor).name: name
            for name, tensor in names.items()
        }
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        given = [recorder.take(leaf) for leaf in leaves]
        fake_args, fake_kwargs = pytree.tree_unflatten(given, spec)
        with state_kept(model), module_calls(model) as recorder.running, recorder:
            result = model(*fake_args, **fake_kwargs)
        recorder.finish(result)
    del given, fake_args, fake_kwargs, result
    refuse_leaks(recorder.let_go())
    return recorder


class Recorder(TorchDispatchMode):
    """Write down the operators that run while the mode is on.

    Attributes
    ----------
    graph : torch.fx.Graph
        What ran so far. ``node.meta`` holds ``val``, a description of the result or a list of
        them, after :meth:`let_go` as tensors without numbers; a tensor from outside has one only
        if an operator took it. Of operators it also holds ``owner``, the dotted name of the
        innermost module that was running, and ``frames``, the lines of the user's code that led
        there, outermost first.
    parameters : dict of str to str
        Name of a placeholder -> dotted name of the parameter or buffer it stands for.
    inputs : list of Node
        Placeholders of the tensors among the arguments.
    constants : dict of Node to Tensor
        Placeholders of tensors that are neither, and what they hold.
    running : list of str
        Names of the modules that are running, outermost first.
    nodes : dict of int to Node
        Id that a tensor had while all of them lived -> its node, the last one.
    """

    def __init__(self, fake: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.parameters: dict[str, str] = {}
        self.inputs: list[Node] = []
        self.constants: dict[Node, Tensor] = {}
        self.running: list[str] = []
        self._to_fake = fake
        # By identity; the tensors are kept so that no other can take the place of one in memory.
        self.nodes: dict[int, Node] = {}
        self._fakes: dict[int, Tensor] = {}  # made when an operator first asks for one
        self._kept: list[Tensor] = []
        self._reals: dict[int, Tensor] = {}  # what a fake tensor stands for
        self._certain: dict[int, Tensor] = {}
        self._written: set[int] = set()  # real tensors that the forward would have changed

    # -- what a graph begins and ends with --------------------------------------------------------

    def placeholder(self, name: str, tensor: Tensor) -> Node:
        """Begin with a tensor from outside."""
        node = self.graph.placeholder(name)
        self._know(tensor, node)
        return node

    def take(self, leaf: Any) -> Any:
        """Take a part of the arguments: a tensor becomes an input, its fake stands for it."""
        if not isinstance(leaf, Tensor):
            return _plain(leaf, "takes")
        self.inputs.append(self.placeholder(f"input_{len(self.inputs)}", leaf))
        return self._fake(leaf)

    def finish(self, result: Any) -> None:
        """Write down what the forward returns."""
        leaves = pytree.tree_leaves(result)
        self.graph.output(
            tuple(
                self._node(leaf) if isinstance(leaf, Tensor) else _plain(leaf, "returns")
                for leaf in leaves
            )
        )

    def let_go(self) -> list[weakref.ref[Tensor]]:
        """Forget all tensors: of what the graph holds only shapes and types are left."""
        made = [weakref.ref(x) for x in self._kept if compat.is_fake(x)]
        for node in self.graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = _shape_only(node.meta["val"])
        for known in (self._fakes, self._kept, self._reals, self._certain):
            known.clear()  # type: ignore[attr-defined]
        return made

    # -- operators --------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator on fake tensors and write it down."""
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in _TO_NUMBER:
            return self._number(func, args, kwargs)
        arguments = _mapped((args, kwargs), self._node)
        if func is torch.ops.aten.batch_norm.default and not args[5]:
            # Torch finds this shape by doing the arithmetic, twenty times as slowly.
            out = torch.empty_like(self._fake(args[0]))
        else:
            fake_args, fake_kwargs = _mapped((args, kwargs), self._fake)
            out = func(*fake_args, **fake_kwargs)
        self._write(func, arguments, out)
        if func is not torch.ops.aten.detach_.default:  # torch.tensor ends with it
            self._evaluate(func, args, kwargs, out)
        return out

    def _write(self, func: Any, arguments: tuple[Any, Any], out: Any) -> None:
        several = isinstance(out, list | tuple)
        if not func._schema.is_mutable and not any(
            isinstance(x, Tensor) for x in (out if several else [out])
        ):
            return
        node = self.graph.call_function(func, *arguments)
        node.meta = {"val": _described(out), "owner": self.running[-1] if self.running else ""}
        node.meta["frames"] = _frames(sys._getframe(2))
        if isinstance(out, Tensor):
            self._know(out, node)
        elif several:
            for index, part in enumerate(out):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, index))
                    item.meta = {**node.meta, "val": _described(part)}
                    self._know(part, item)

    # -- tensors ----------------------------------------------------------------------------------

    def _know(self, tensor: Tensor, node: Node) -> None:
        self.nodes[id(tensor)] = node
        self._kept.append(tensor)
        if id(tensor) in self._reals:
            self.nodes[id(self._reals[id(tensor)])] = node

    def _node(self, tensor: Tensor) -> Node:
        """Find the node of a tensor."""
        found = self.nodes.get(id(tensor))
        if found is None:
            with self.graph.inserting_before(next(iter(self.graph.nodes))):
                found = self.placeholder("constant", tensor)
            self.constants[found] = tensor
        return found

    def _fake(self, tensor: Tensor) -> Tensor:
        if compat.is_fake(tensor):
            return tensor
        found = self._fakes.get(id(tensor))
        if found is None:
            found = self._fakes[id(tensor)] = self._to_fake(tensor)
            node = self._node(tensor)
            node.meta["val"] = _described(found)
            self._reals[id(found)] = tensor
            self._know(found, node)
        return found

    # -- numbers that follow from no input and no weight ------------------------------------------

    def _is_certain(self, tensor: Tensor) -> bool:
        if compat.is_fake(tensor):
            return id(tensor) in self._certain
        known = not isinstance(tensor, nn.Parameter) and id(tensor) not in self._written
        return known and tensor.numel() <= _FEW

    def _real(self, tensor: Tensor) -> Tensor:
        return self._certain.get(id(tensor), tensor)

    def _evaluate(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Work out the result of an operator on constants, if it is small."""
        results = list(out) if isinstance(out, list | tuple) else [out]
        small = all(isinstance(x, Tensor) and x.numel() <= _FEW for x in results)
        if not small and not func._schema.is_mutable:
            return  # as most operators are
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func._schema.is_mutable:
            self._written.update(id(self._reals.get(id(x), x)) for x in tensors)
            if any(id(x) in self._certain for x in tensors):
                self._certain.clear()  # others may be views of what is written
            return
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if not seeded and all(self._is_certain(x) for x in tensors):
            with compat.real_tensors():
                real_args, real_kwargs = _mapped((args, kwargs), self._real)
                real = func(*real_args, **real_kwargs)
            found = real if isinstance(real, list | tuple) else [real]
            self._certain.update((id(x), value) for x, value in zip(results, found, strict=True))

    def _number(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Turn a tensor into a Python number, if it depends on nothing that changes."""
        tensor = args[0]
        if id(tensor) in self._written or (
            compat.is_fake(tensor) and id(tensor) not in self._certain
        ):
            return func(self._fake(tensor), *args[1:], **kwargs)  # fails and says why
        # A number that the model holds is the same in the small model, a parameter's too.
        with compat.real_tensors():
            return func(self._real(tensor), *args[1:], **kwargs)


@dataclass(frozen=True)
class _Described:
    """A tensor as it was when an operator returned it; later ones may change its shape."""

    shape: torch.Size
    dtype: torch.dtype


def _described(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_described(x) for x in value]
    return _Described(value.shape, value.dtype) if isinstance(value, Tensor) else value


def _shape_only(value: Any) -> Any:
    if isinstance(value, list):
        return [_shape_only(x) for x in value]
    if isinstance(value, _Described):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Change the tensors among the arguments of an operator."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(x, change) for x in value)
    if isinstance(value, dict):
        return {name: _mapped(x, change) for name, x in value.items()}
    return value


def _plain(leaf: Any, verb: str) -> Any:
    if isinstance(leaf, _PLAIN):
        return leaf
    raise TypeError(
        f"it {verb} a {type(leaf).__name__}, whose tensors cannot be found (known are tuples, "
        "lists, dicts and what torch.utils._pytree.register_pytree_node was told of)"
    )


@cache
def is_users(code: CodeType) -> bool:
    """Tell whether code under way is the user's: neither torch's nor the tracer's own."""
    file = code.co_filename
    return file not in _OWN and not compat.is_torch_file(file)


def _frames(frame: FrameType | None) -> tuple[Frame, ...]:
    """Return the lines of the user's code under way, outermost first."""
    found: list[Frame] = []
    while frame is not None and frame.f_code is not record.__code__:
        code = frame.f_code
        if is_users(code):
            found.append((code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(reversed(found))


@contextmanager
def module_calls(model: nn.Module) -> Iterator[list[str]]:
    """Keep the names of the modules that are being called, outermost first.

    An exception leaves the list as it was when it was raised.
    """
    running: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if compat.is_scripted(module):
            continue

        def enter(_: nn.Module, __: Any, name: str = name) -> None:
            running.append(name)

        def leave(_: nn.Module, __: Any, ___: Any, name: str = name) -> None:
            while running.pop() != name:  # those inside whose failure was caught
                pass

        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


# -- reading what was written down ----------------------------------------------------------------


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the traced shape of an argument; a number is a scalar."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def op_name(node: Node) -> str:
    """Name of the ATen operator without overload and without the in-place underscore."""
    packet = getattr(node.target, "overloadpacket", None)
    name = (
        packet.__name__
        if packet is not None
        else getattr(node.target, "__name__", str(node.target))
    )
    return name.removesuffix("_") if not name.startswith("_") else name
