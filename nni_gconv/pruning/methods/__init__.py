"""Pruning methods: the paper, the formula, the class."""
