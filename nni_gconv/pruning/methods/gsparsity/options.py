"""What GSparsity can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nni_gconv.pruning.options import ChannelOptions


class GSparsityOptions(ChannelOptions):
    """Options of :class:`~nni_gconv.GSparsityPruner`."""

    gain: float = Field(0.05, ge=0, description="Gain of layers whose entries have none.")
    threshold: float = Field(
        1e-6, ge=0, description="A filter whose L2 norm is at most this is dead."
    )
    normalization: Literal["div", "mul", "none"] | None = Field(
        None, description="How gains depend on filters' sizes; default: ProxSGD's, else div."
    )
    score: Literal["norm", "folded"] = Field(
        "norm", description="What ranks living filters; folded: with the norm behind them."
    )
    silence: bool = Field(True, description="Mask dead channels at the end of each epoch.")
    ramp: float = Field(
        0.7, gt=0, le=1, description="Share of the training after which a budget is met."
    )
