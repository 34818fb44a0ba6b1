"""Pruning inside the trainer that people have: a callback for Lightning, one for Hugging Face.

``nni_gconv.callbacks.lightning.PruningCallback`` and
``nni_gconv.callbacks.huggingface.PruningCallback`` take the same arguments, those of
:class:`nni_gconv.callbacks.session.PruningSession`, which does the work; a plain loop has
``pruner.training()``. Each imports its trainer's library, so neither is imported here. Knows of
pruning and speedup; of no recipe.
"""
