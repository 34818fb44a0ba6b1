"""Equal forms of one grouped convolution: the same numbers, other kernels, other milliseconds.

Begin with :func:`forms_of`, which lists what a layer allows, and :func:`in_form`, which makes the
layer. A :class:`Form` is the convolution as it is or with groups merged into fewer (`merged`; one
group is the block-diagonal dense convolution), with weights packed for oneDNN (`packed`), one
convolution a group (`split`), or batched matrix products (`matmul`). :class:`FormTimer` finds the
quickest on this machine; :func:`find_units` finds the layers of a network (`units`). Knows of
groupconv's gathers and layers and of profiling.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.groupconv.forms.form import KINDS, Form, forms_of, in_form
    from nni_gconv.groupconv.forms.network import quickest_copy
    from nni_gconv.groupconv.forms.timing import FormTimer, TimedForm
    from nni_gconv.groupconv.forms.units import Unit, find_units, input_shapes

__all__ = [
    "KINDS",
    "Form",
    "FormTimer",
    "TimedForm",
    "Unit",
    "find_units",
    "forms_of",
    "in_form",
    "input_shapes",
    "quickest_copy",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "form": ["KINDS", "Form", "forms_of", "in_form"],
        "network": ["quickest_copy"],
        "timing": ["FormTimer", "TimedForm"],
        "units": ["Unit", "find_units", "input_shapes"],
    },
)
