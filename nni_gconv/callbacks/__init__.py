"""Pruning inside the trainer that people have: a callback for Lightning, one for Hugging Face.

``nni_gconv.callbacks.lightning.PruningCallback`` and
``nni_gconv.callbacks.huggingface.PruningCallback`` take the same arguments, those of
:class:`nni_gconv.callbacks.session.PruningSession`, which does the work; a plain loop has
``pruner.training()``. Each imports its trainer's library, so neither is imported here. Knows of
pruning and speedup; of no recipe.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "PruningCallback":
        raise ImportError(
            "PruningCallback: there is one for each trainer: import it from "
            "nni_gconv.callbacks.lightning or nni_gconv.callbacks.huggingface"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
