"""The published methods, one file or folder each; each knows its paper and the bases, no other.

Begin with ``fpgm``, the smallest: options, a score, nothing else. ``slimming`` adds a penalty while
the network trains, ``gsparsity`` a budget that training steers to, ``gconv`` and ``shuffle`` make
groups; ``nni`` takes the scores of NNI's own pruners.
"""
