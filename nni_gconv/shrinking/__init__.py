"""A network of one's own in one call: what is asked, what is said on the way, what comes back.

Begin with :func:`shrink`. It does what ``docs/python.md`` does step by step (a pruner, NNI's masks,
:class:`nni_gconv.ModelSpeedup`), with defaults for any CNN; :class:`ShrinkReport` says what came of
it. Knows of pruning, speedup and profiling; not of recipes, trials and data sets.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.shrinking.call import shrink
    from nni_gconv.shrinking.report import ShrinkReport
    from nni_gconv.shrinking.request import example_of, read_request

__all__ = ["ShrinkReport", "example_of", "read_request", "shrink"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "call": ["shrink"],
        "report": ["ShrinkReport"],
        "request": ["example_of", "read_request"],
    },
)
