"""Masks to a smaller, equal model: trace, couple, cut, verify."""
