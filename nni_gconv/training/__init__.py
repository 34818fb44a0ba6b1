"""Data sets, networks and the training loop.

Begin with :func:`nni_gconv.training.loop.fit`; `data` loads images, `zoo` makes networks, `engine`
is the loop that `fit` and NNI's evaluator share, `logs` writes metrics. Knows of compat and
groupconv. Import each name from its own module: this package itself imports nothing, so that
reading settings stays quick.
"""
