"""Small models as files: one safetensors file with weights and the plan that rebuilds the model.

Begin with :func:`save_compact` and :func:`load_compact` (`files`). The plan (`plan`) says for every
layer what it became (type, width attributes, shapes of its tensors). With the unpruned architecture
in hand, :func:`load_compact` gives each layer these shapes and loads the weights. Nothing is
pickled, nothing in the file is executed. Knows of groupconv, speedup and inference.
"""

from nni_gconv.artefact.files import (
    holds_plan,
    load_compact,
    read_plan,
    save_compact,
    versions,
    weights_digest,
)
from nni_gconv.artefact.hub import from_pretrained, push_to_hub, save_pretrained
from nni_gconv.artefact.plan import FORMAT, plan_of, rebuild

__all__ = [
    "FORMAT",
    "from_pretrained",
    "holds_plan",
    "load_compact",
    "plan_of",
    "push_to_hub",
    "read_plan",
    "rebuild",
    "save_compact",
    "save_pretrained",
    "versions",
    "weights_digest",
]
