"""What stands behind :mod:`nni_gconv.tuner`: arrays in, proposals out; neither NNI nor torch."""
