"""ProxSGD: stochastic gradient descent whose penalty, a group lasso on filters, is a proximal map.

Papers: Yang et al., "ProxSGD: Training Structured Neural Networks under Regularization and
Constraints", ICLR 2020, https://openreview.net/forum?id=HygpthEtvr; with filters as groups in
Chatzimichailidis et al., "GSparsity: Unifying Network Pruning and Neural Architecture Search by
Group Sparsity", AutoML 2022 (late-breaking), https://openreview.net/forum?id=r0GeE-arUe5.

For a filter ``x`` of ``d`` weights with gradient ``g``, at step ``t``::

    v   <- (1 - momentum) v + momentum g            momentum weighs the new gradient
    r   <- beta r + (1 - beta) g^2                  per weight
    tau  = mean of sqrt(r / (1 - beta^t)) + eps     one number a filter; 1 if not adaptive
    gain = mu scale(d) / tau                        scale: 1, sqrt(d) or 1 / sqrt(d)
    p    = max(0, 1 - gain / |x - v / tau|) (x - v / tau)
    x   <- x + lr (p - x)

Without a gain (``mu``) the step is plain: ``x <- x - lr v / tau``.

This file needs torch alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from nni_gconv.errors import ConfigError, unknown_name

Normalization = Literal["none", "mul", "div"]
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "mul", "div")
#: What others call their settings; a group may hold any other key, as in torch.
_MISNAMED = {
    "weight_decay": "ProxSGD has none, its penalty is mu",
    "gain": "the gain of a group is called mu",
    "nesterov": "ProxSGD has none",
    "dampening": "ProxSGD has none, its momentum weighs the new gradient",
    "betas": "ProxSGD has momentum and beta",
}
_ABOVE_ZERO, _BELOW_ONE = math.nextafter(0, 1), math.nextafter(1, 0)


def gain_scale(size: int, normalization: Normalization) -> float:
    """Return the factor by which the gain of a filter depends on its size.

    Parameters
    ----------
    size : int
        Weights of the filter.
    normalization : {"none", "mul", "div"}
        1, ``sqrt(size)`` (the classical group lasso: large filters are held back more) or
        ``1 / sqrt(size)`` (the paper's choice: small ones are).

    Examples
    --------
    >>> [gain_scale(16, rule) for rule in NORMALIZATIONS]
    [1.0, 4.0, 0.25]
    """
    if normalization not in NORMALIZATIONS:
        raise ConfigError(unknown_name("normalization", normalization, NORMALIZATIONS, "ProxSGD"))
    return {"none": 1.0, "mul": math.sqrt(size), "div": 1 / math.sqrt(size)}[normalization]


def group_soft_threshold(filters: Tensor, gain: float | Tensor) -> Tensor:
    """Shorten every filter by `gain`; what is shorter becomes zero.

    Parameters
    ----------
    filters : Tensor, shape (F, ...)
        One filter along the first dimension.
    gain : float or Tensor of shape (F,)
        At least 0.

    Returns
    -------
    Tensor
        Of the shape of `filters`: the point that minimises
        ``sum_f gain_f |p_f| + |p_f - filters_f|^2 / 2``.

    Examples
    --------
    >>> group_soft_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    norms = filters.flatten(1).norm(dim=1)
    # The smallest number instead of 0 leaves zero filters zero, with a gain of 0 too.
    left = (1 - gain / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0)
    return filters * left.view(-1, *[1] * (filters.dim() - 1))


class ProxSGD(Optimizer):
    """Gradient descent with a group lasso on filters as a proximal step.

    The defaults are the paper's update, number for number. A filter is what stands at one index of
    a parameter's first dimension; in a one-dimensional parameter every element is one.

    Parameters
    ----------
    params : iterable of Tensor or dict
        Parameters, or groups of them. A group's ``mu`` is its gain; absent, None or 0 means no
        penalty. Its ``filter_dim`` is the dimension that counts filters where that is not the
        first: 1 for transposed convolutions. All arguments below may stand in a group.
    lr : float, default 1e-3
        Step towards the proximal point, from 0 to 1 where there is a gain.
    momentum : float, default 0.9
        Weight of the new gradient in ``v``, above 0 up to 1. (Mind that it is that of the old one
        in ``torch.optim.SGD``.)
    beta : float, default 0.999
        Memory of the squared gradients, from 0 to below 1.
    eps : float, default 1e-8
        Added to ``tau``.
    normalization : {"div", "mul", "none"}, default "div"
        How the gain depends on a filter's size, see :func:`gain_scale`.
    adaptive : bool, default True
        Divide by ``tau``; without it ``tau`` is 1.
    exact_zeros : bool, default False
        The paper's filters only decay, by ``1 - lr`` a step. With this a filter whose proximal
        point is zero becomes exactly zero once it is near: as soon as the ordinary proximal
        gradient step of length `lr` would make it so, ``|x - lr v / tau| <= lr gain``, and, if
        adaptive, its weights are at most `lr` in the root mean square, what a usual step moves
        them. Both updates have the same fixed points: nothing becomes zero that would not tend to
        it. A filter leaves zero again when its gradient outgrows the gain.

    Raises
    ------
    ConfigError
        An argument is out of its range.
    RuntimeError
        A gradient is sparse.

    Notes
    -----
    State of a parameter: ``step``, ``momentum_buffer`` (v), ``square`` (r, if adaptive) and
    ``filter_size`` (d at its first step). A filter that loses input channels later, by speedup,
    goes on with its first ``d``: weights that are gone count as zeros with zero gradients, as those
    of the masked filter do.

    No loop runs over filters, and the kernels launched hardly grow with the number of layers: those
    with filters of the same size are handled as one matrix.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> optimizer = ProxSGD([
    ...     {"params": net[0].weight, "mu": 0.05},
    ...     {"params": [net[0].bias, *net[1].parameters()]},
    ... ], lr=0.01)
    >>> net(torch.randn(4, 3, 8, 8)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.9,
        beta: float = 0.999,
        eps: float = 1e-8,
        normalization: Normalization = "div",
        adaptive: bool = True,
        exact_zeros: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "beta": beta,
            "eps": eps,
            "normalization": normalization,
            "adaptive": adaptive,
            "exact_zeros": exact_zeros,
            "mu": None,
            "filter_dim": 0,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own or the optimizer's."""
        where, group = f"ProxSGD: group {len(self.param_groups)}", {**self.defaults, **param_group}
        _check(group, where)
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if 0 < parameter.dim() <= group["filter_dim"]:
                self.param_groups.pop()
                shape = tuple(parameter.shape)
                raise ConfigError(
                    f"{where}: filter_dim: {group['filter_dim']} is no dimension of a parameter "
                    f"of shape {shape}"
                )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model and its gradients again and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for alike, members in self._remember(group).items():
                self._move(alike, members, group)
        return loss

    def _remember(self, group: dict[str, Any]) -> dict[_Alike, list[_Member]]:
        """Take up the gradients, and sort the parameters by what can be updated as one matrix."""
        found: dict[_Alike, list[_Member]] = defaultdict(list)
        grads, momenta, squares = [], [], []
        dim = group["filter_dim"]
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None or not parameter.numel():
                continue
            if grad.is_sparse:
                raise RuntimeError("ProxSGD does not take sparse gradients")
            state = self.state[parameter]
            width = parameter.numel() // parameter.shape[dim] if parameter.dim() else 1
            if not state:
                state["step"], state["filter_size"] = 0, width
                state["momentum_buffer"] = torch.zeros_like(parameter)
                if group["adaptive"]:
                    state["square"] = torch.zeros_like(parameter)
            if group["adaptive"] and "square" not in state:
                raise ConfigError("ProxSGD: adaptive: cannot be switched on after the first step")
            state["step"] += 1
            grads.append(grad)
            momenta.append(state["momentum_buffer"])
            if group["adaptive"]:
                squares.append(state["square"])
            alike = _Alike(
                parameter.device, parameter.dtype, width, state["filter_size"], state["step"]
            )
            found[alike].append(_Member(parameter, state, _order(parameter, dim)))
        if grads:
            torch._foreach_lerp_(momenta, grads, group["momentum"])
        if squares:
            torch._foreach_mul_(squares, group["beta"])
            torch._foreach_addcmul_(squares, grads, grads, 1 - group["beta"])
        return found

    def _move(self, alike: _Alike, members: list[_Member], group: dict[str, Any]) -> None:
        """Move parameters with filters of one size; rows of the matrices are filters."""
        direction = _rows(members, [m.state["momentum_buffer"] for m in members])
        tau: float | Tensor = 1.0
        if group["adaptive"]:
            squares = _rows(members, [m.state["square"] for m in members])
            correction = math.sqrt(1 - group["beta"] ** alike.step)
            tau = squares.sqrt_().sum(1).div_(alike.filter_size * correction).add_(group["eps"])
            direction /= tau[:, None]
        parameters = [m.parameter for m in members]
        lr, mu = group["lr"], group["mu"]
        if not mu:
            torch._foreach_add_(parameters, _unrolled(direction, members), alpha=-lr)
            return
        gain = mu * gain_scale(alike.filter_size, group["normalization"]) / tau
        filters = _rows(members, parameters)
        proximal = group_soft_threshold(filters - direction, gain)
        moved = filters.lerp(proximal, lr)
        if group["exact_zeros"]:
            near = (filters - lr * direction).norm(dim=1) <= lr * gain
            if group["adaptive"]:
                # Where gradients are small gain is huge; half a filter must not go in one step.
                near &= filters.norm(dim=1) <= lr * math.sqrt(alike.filter_size)
            moved[near & ~proximal.any(1)] = 0
        torch._foreach_copy_(parameters, _unrolled(moved, members))


class _Alike(NamedTuple):
    """What parameters share that are updated as one matrix."""

    device: torch.device
    dtype: torch.dtype
    width: int
    """Weights of a filter as it is."""
    filter_size: int
    """Weights it had at the first step."""
    step: int


class _Member(NamedTuple):
    """A parameter, what is remembered of it, and its dimensions in the order they lie in memory."""

    parameter: Tensor
    state: dict[str, Any]
    order: tuple[int, ...] | None
    """Filters first; None where they lie like that already."""


def _order(parameter: Tensor, dim: int) -> tuple[int, ...] | None:
    if dim == 0 and parameter.is_contiguous():
        return None
    inner = [i for i in range(parameter.dim()) if i != dim]
    return (dim, *sorted(inner, key=parameter.stride, reverse=True))


def _rows(members: Sequence[_Member], tensors: Sequence[Tensor]) -> Tensor:
    """Copy tensors into one matrix with a filter a row."""
    rows = []
    for member, tensor in zip(members, tensors, strict=True):
        ordered = tensor if member.order is None else tensor.permute(member.order)
        rows.append(ordered.reshape(len(ordered) if tensor.dim() else 1, -1))
    matrix = torch.cat(rows)
    # In half precision eps is 0, and so may be its quotients.
    return matrix.float() if matrix.dtype.itemsize < 4 else matrix


def _unrolled(matrix: Tensor, members: Sequence[_Member]) -> list[Tensor]:
    """Cut a matrix of filters into tensors shaped as the parameters."""
    counts = [m.parameter.numel() // matrix.shape[1] for m in members]
    pieces = []
    for piece, member in zip(matrix.split(counts), members, strict=True):
        shape, order = member.parameter.shape, member.order
        if order is None:
            pieces.append(piece.view(shape))
        else:
            back = sorted(range(len(order)), key=order.__getitem__)
            pieces.append(piece.view([shape[i] for i in order]).permute(back))
    return pieces


def _check(group: dict[str, Any], where: str) -> None:
    for key, instead in _MISNAMED.items():
        if group.get(key):
            raise ConfigError(f"{where}: {key}: {instead}")
    for key, low, high, allowed in (
        ("lr", 0, math.inf, "a number from 0"),
        ("momentum", _ABOVE_ZERO, 1, "a number above 0, up to 1"),
        ("beta", 0, _BELOW_ONE, "a number from 0 to below 1"),
        ("eps", 0, math.inf, "a number from 0"),
    ):
        if not (_is_number(group[key]) and low <= group[key] <= high):
            raise ConfigError(f"{where}: {key}: {group[key]!r} is not allowed ({allowed})")
    for key in ("adaptive", "exact_zeros"):
        if not isinstance(group[key], bool):
            raise ConfigError(f"{where}: {key}: {group[key]!r} is not allowed (True or False)")
    gain_scale(1, group["normalization"])
    mu, dim = group["mu"], group["filter_dim"]
    if mu is not None and not (_is_number(mu) and 0 <= mu < math.inf):
        raise ConfigError(f"{where}: mu: {mu!r} is not allowed (None or a number from 0)")
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 0:
        raise ConfigError(f"{where}: filter_dim: {dim!r} is not allowed (a number from 0)")
    if group["lr"] > 1 and mu:
        raise ConfigError(f"{where}: lr: {group['lr']!r} steps beyond the proximal point (up to 1)")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
