"""Data sets, network zoo and the training loop.

Import what is needed from its own module; this package itself imports nothing, so that reading a
recipe or listing the zoo stays quick.
"""
