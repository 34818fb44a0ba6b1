"""Pruning methods, one file each; scores and allocation are pure functions beside them."""
