"""Criteria that rank channels, one file each: the paper, the formula, the class."""
