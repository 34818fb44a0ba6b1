"""What pruners can be told: one declaration serves Python, recipes and the tables of the docs.

A method adds its own options in a class derived from one of these, named ``Options`` inside the
pruner's class. Names, types and ranges are checked when a pruner is made and when a recipe is
loaded, and the pruner finds the values in ``self.options``.

>>> from pydantic import Field
>>> class Options(ChannelOptions):
...     power: float = Field(2.0, gt=0, description="Order of the norm.")
>>> Options(power=1).schedule.name
'one-shot'
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from nni_gconv.checked import Checked
from nni_gconv.graph import Graph
from nni_gconv.profiling import Counts, parse_budget
from nni_gconv.pruning.calibration import Calibration
from nni_gconv.pruning.reconstruction import ReconstructSettings
from nni_gconv.pruning.schedule import Schedule


class Traced(NamedTuple):
    """What is known of a model before a pruner is made: how it runs and what it costs."""

    graph: Graph
    counts: Counts


#: How layers that share channels agree on which ones go.
Rule = Literal["mean", "max", "union"]
Budget = Annotated[dict[str, float], BeforeValidator(parse_budget)]
ScheduleOption = Annotated[Schedule, BeforeValidator(Schedule.parse)]

CalibrationOption = Annotated[Calibration, BeforeValidator(Calibration.of)]
ReconstructOption = Annotated[ReconstructSettings, BeforeValidator(ReconstructSettings.parse)]

#: Options of all pruners for which a recipe has keys beside ``options``, or other sections.
NOT_IN_RECIPES = frozenset(
    {"dummy_input", "budget", "masks", "calibration", "reconstruct", "traced", "loss"}
)


class PrunerOptions(Checked):
    """What every pruner takes beside the model, the config_list and the evaluator."""

    dummy_input: Any = Field(
        None, description="Example arguments of the forward; without one image sizes are tried."
    )
    budget: Budget | None = Field(
        None,
        description="Instead of ratios: the share of dense, or the count, of macs, params, latency "
        "(a share) that may be left.",
    )
    schedule: ScheduleOption = Field(
        Schedule("one-shot"),
        description="When masks are made during training: one-shot, constant, iterative, linear, "
        "cubic, or a mapping with name and its keys.",
    )
    masks: Any = Field(None, description="Masks that hold already; budgets count them.")
    calibration: CalibrationOption | None = Field(
        None,
        description="Images of the training split, for methods that look at data and for "
        "reconstruct.",
    )
    traced: Any = Field(None, description="What is known of the model, so that it runs but once.")
    reconstruct: ReconstructOption | None = Field(
        None, description="Whether, or how, the weights left are fitted to the dense outputs."
    )


class ChannelOptions(PrunerOptions):
    """What pruners that remove channels take."""

    coupling: Rule = Field(
        "mean",
        title="coupling",
        description="How layers that share channels agree: by the mean or the largest of their "
        "scores; union: a channel goes only if every layer would remove it.",
    )
