"""Which channels go, and how many: functions of scores, coupled sets and costs.

It knows arrays, the traced graph and its coupled sets; it knows nothing of NNI, training and
methods. Begin with ``scores`` (filters -> numbers) and ``allocation`` (numbers and ratios -> steps
taken of each set); ``cost``, ``budget``, ``near_limit`` and ``latency`` find the steps that meet a
budget, ``coupled_sets`` what layers of one set agree on, ``skipped`` what cannot be pruned and why,
``earlier_masks`` what holds already.
"""
