"""An L1 penalty whose strength differs from kernel to kernel: parameters and arrays, no NNI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nni_gconv.pruning.l1_penalty import add_subgradient_, shrink_


@dataclass(frozen=True)
class _Term:
    """Penalised weights of one parameter group, and the strength for each of their numbers."""

    group: int
    weights: list[nn.Parameter]
    strengths: list[Tensor]


class KernelPenalty:
    """``sum over kernels (f, c) of strength[f, c] * |W[f, c]|_1`` over several weights.

    Parameters
    ----------
    parameter_groups : sequence of mapping
        Those of the optimizer; weights that it does not train are not penalised.
    weights : sequence of Parameter, shapes (F, C, ...)
    strengths : sequence of ndarray, shapes (F, C)
        One for each weight.

    Examples
    --------
    >>> weight = nn.Parameter(torch.tensor([[0.5, -0.2], [0.3, 0.4]]))
    >>> strength = np.array([[0.0, 0.01], [0.01, 0.0]])
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> penalty = KernelPenalty(optimizer.param_groups, [weight], [strength])
    >>> weight.grad = torch.zeros(2, 2)
    >>> penalty.add_subgradient()
    >>> weight.grad
    tensor([[ 0.0000, -0.0100],
            [ 0.0100,  0.0000]])
    """

    def __init__(
        self,
        parameter_groups: Sequence[Mapping[str, Any]],
        weights: Sequence[nn.Parameter],
        strengths: Sequence[NDArray[np.float64]],
    ) -> None:
        self._terms = []
        for number, group in enumerate(parameter_groups):
            mine = {id(parameter) for parameter in group["params"]}
            inside = [i for i, weight in enumerate(weights) if id(weight) in mine]
            if inside:
                spread = [_spread(strengths[i], weights[i]) for i in inside]
                self._terms.append(_Term(number, [weights[i] for i in inside], spread))

    @torch.no_grad()
    def add_subgradient(self) -> None:
        """Add ``strength * sign(W)`` to the gradients."""
        for term in self._terms:
            given = [i for i, weight in enumerate(term.weights) if weight.grad is not None]
            add_subgradient_(
                [term.weights[i].grad for i in given],  # type: ignore[misc]
                [term.weights[i] for i in given],
                [term.strengths[i] for i in given],
            )

    @torch.no_grad()
    def shrink(
        self,
        parameter_groups: Sequence[Mapping[str, Any]],
        step_size: Callable[[Mapping[str, Any]], float],
    ) -> None:
        """Take the proximal step: weights lose `step_size` times their strength, down to zero.

        Parameters
        ----------
        parameter_groups : sequence of mapping
            As given before, though their settings may have changed.
        step_size : callable
            Group -> size of a step.
        """
        for term in self._terms:
            size = step_size(parameter_groups[term.group])
            shrink_(term.weights, torch._foreach_mul(term.strengths, size))


def _spread(strength: NDArray[np.float64], weight: nn.Parameter) -> Tensor:
    """Repeat the strength of each kernel for all of its numbers, laid out like the weight."""
    per_kernel = torch.from_numpy(strength).view(*strength.shape, *[1] * (weight.dim() - 2))
    return torch.empty_like(weight, requires_grad=False).copy_(per_kernel)
