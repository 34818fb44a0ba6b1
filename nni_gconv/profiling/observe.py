"""Watching a forward pass: which operators ran, what memory they held, which module called them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nni_gconv import compat

# They move, make or relabel numbers without computing any; matched by their whole name, less the
# underscore of the in-place form ...
MOVING = frozenset((
    "alias", "as_strided", "cat", "channel_shuffle", "clone", "contiguous", "copy", "detach",
    "embedding", "fill", "flip", "gather", "im2col", "index", "index_put", "index_select",
    "lift_fresh", "masked_fill", "masked_select", "native_channel_shuffle", "pixel_shuffle",
    "pixel_unshuffle", "repeat", "roll", "set", "squeeze", "stack", "t", "take", "transpose",
    "tril", "triu", "unsqueeze", "where", "zero", "_to_copy", "_unsafe_index", "_unsafe_view",
    "_local_scalar_dense",
))  # fmt: skip
# ... or by its beginning or end.
MOVING_PARTS = ("constant_pad", "reflection_pad", "replication_pad", "new_", "resize")
MOVING_ENDS = ("_like", "_scatter")
# Together with the pointwise ones, they take a few operations for each number they read, which
# counts of MACs leave out by convention.
LINEAR_TIME = (
    "norm", "softmax", "pool", "mean", "sum", "amax", "amin", "argmax", "argmin", "max", "min",
    "var", "std", "prod", "any", "all", "upsample", "dropout", "count_nonzero", "logsumexp",
    "hardswish", "_prelu_kernel", "rrelu", "glu",
)  # fmt: skip


def _does_arithmetic(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    name = func._overloadpacket.__name__.removesuffix("_")
    if name in MOVING or name.startswith(MOVING_PARTS) or name.endswith(MOVING_ENDS):
        return False
    arguments = func._schema.arguments
    # A view shares its storage with an argument that it does not write to.
    if any(a.alias_info is not None and not a.alias_info.is_write for a in arguments):
        return False
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))


def is_linear_time(func: Any) -> bool:
    """Tell whether an operator costs no more than a few operations per number it reads."""
    name = func._overloadpacket.__name__
    # Some in-place forms lack the tag that their plain forms have.
    plain = getattr(getattr(torch.ops, func.namespace), name.removesuffix("_"), None)
    overloads = [func]
    if plain is not None:
        overloads += [getattr(plain, overload) for overload in plain.overloads()]
    if any(torch.Tag.pointwise in overload.tags for overload in overloads):
        return True
    return func.namespace == "aten" and any(word in name for word in LINEAR_TIME)


class OperatorObserver(TorchDispatchMode):
    """Notes operators that compute without a MAC formula, and the storage they keep alive.

    Parameters
    ----------
    formulas : container
        Operators that are counted elsewhere.
    existing : iterable of Tensor
        Parameters, buffers and inputs: what was there before is no activation.

    Attributes
    ----------
    calls : Counter of str
        Calls of each operator that does arithmetic and has no formula.
    costly : set of str
        Those of them that are not linear in what they read.
    peak : int
        Most bytes of new tensors that were alive at once.
    """

    supports_higher_order_operators = True

    def __init__(self, formulas: Any, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.costly: set[str] = set()
        self.peak = 0
        self._formulas = formulas
        self._alive = 0
        self._known = {key for key in map(_storage_key, existing) if key is not None}
        self._tracked: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and note it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        if packet is None:  # an operator with operators inside, such as a loop
            if func not in self._formulas:
                self._note(str(func), costly=True)
        elif packet not in self._formulas and _does_arithmetic(func, args, kwargs):
            self._note(f"{func.namespace}.{packet.__name__}", costly=not is_linear_time(func))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._track(leaf)
        return out

    def _note(self, name: str, costly: bool) -> None:
        self.calls[name] += 1
        if costly:
            self.costly.add(name)

    def _track(self, tensor: Tensor) -> None:
        key = _storage_key(tensor)
        if key is None or key in self._known or key in self._tracked:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()

        def freed(_: Any) -> None:
            self._alive -= size
            self._tracked.pop(key, None)

        self._tracked[key] = weakref.ref(storage, freed)
        self._alive += size
        self.peak = max(self.peak, self._alive)


def _storage_key(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without a storage
        return None


@dataclass
class ModuleRecord:
    """What one module did: calls, FLOPs outside of its children, shape of its last output."""

    calls: int = 0
    flops: int = 0
    output_shape: tuple[int, ...] | None = None


@contextmanager
def recording(
    model: nn.Module, counter: FlopCounterMode
) -> Iterator[dict[nn.Module, ModuleRecord]]:
    """Attribute the FLOPs that `counter` sees to the innermost module that is running.

    Hooks are put on every module and taken off again, whatever happens inside.
    """
    records = {module: ModuleRecord() for module in model.modules()}
    # One entry a running module: FLOPs when it began, and those its children have had since.
    running: list[list[int]] = []

    def before(module: nn.Module, args: Any) -> None:
        running.append([counter.get_total_flops(), 0])

    def after(module: nn.Module, args: Any, output: Any) -> None:
        start, children = running.pop()
        inside = counter.get_total_flops() - start
        record = records[module]
        record.calls += 1
        record.flops += inside - children
        tensors = (x for x in tree_leaves(output) if isinstance(x, Tensor))
        record.output_shape = next((tuple(x.shape) for x in tensors), None)
        if running:
            running[-1][1] += inside

    handles = []
    try:
        for module in records:
            if compat.is_scripted(module):
                continue
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
        yield records
    finally:
        for handle in handles:
            handle.remove()
