"""A network whose layers forgive differently, with the shapes of a ResNet-20."""

import contextlib
import json
import sqlite3

import numpy as np

from nni_gconv.tuning.front import hypervolume
from nni_gconv.tuning.options import Options
from nni_gconv.tuning.propose import Proposer

#: channels, and the side of the image, of the 18 convolutions behind the stem.
_STAGES = ((16, 32), (32, 16), (64, 8))
WORST = (1.0, 0.5)


def space(seed=0):
    sizes = [stage for stage in _STAGES for _ in range(6)]
    macs = np.array([9 * c * c * side * side for c, side in sizes], float)
    params = np.array([9.0 * c * c for c, _ in sizes])
    macs, params = macs / macs.sum() * 0.95, params / params.sum() * 0.95
    return {
        f"prune.options.group_config.layer{i}": {
            "_type": "choice",
            "_value": [1, 2, 4, 8],
            "macs": (macs[i] / np.array([1, 2, 4, 8])).tolist(),
            "params": (params[i] / np.array([1, 2, 4, 8])).tolist(),
            "lost": [0.0, 0.45, 0.68, 0.82],
        }
        for i in range(len(sizes))
    }


class Truth:
    """What a trial reaches: layers differ by a lot, and loss is not quite linear."""

    def __init__(self, options, seed, noise=0.004):
        self.options, self.noise = options, noise
        self.rng = np.random.default_rng(seed)
        self.weights = np.exp(1.2 * self.rng.standard_normal(len(options)))
        self.weights *= 0.35 / self.weights.sum()

    def exact(self, choice):
        lost = [d.lost[o] for d, o in zip(self.options.decisions, choice, strict=True)]
        return 0.95 - float(self.weights @ np.power(lost, 1.3))

    def trial(self, choice):
        return self.exact(choice) + self.noise * self.rng.standard_normal()


def run(seed, trials=50, concurrency=2, **settings):
    """Run a search of so many trials; return the area under the front that it really reached."""
    options = Options.from_space(space())
    truth = Truth(options, seed)
    proposer = Proposer(options, 0.25, 1.0, seed=seed, **settings)
    finished, running, tried = [], [], {}
    for _ in range(trials):
        choice = proposer.next(finished, running, tried)
        tried[choice] = None
        running.append(choice)
        if len(running) == concurrency:
            done = running.pop(0)
            finished.append((done, options.cost(done), truth.trial(done)))
    reached = [(options.cost(c), truth.exact(c)) for c in tried]
    return hypervolume(reached, WORST), tried, proposer, truth, finished


def best(seed):
    """Area under the front of one who knows the truth."""
    from nni_gconv.tuning.propose import _sweep
    from nni_gconv.tuning.surrogate import Weights

    options = Options.from_space(space())
    truth = Truth(options, seed)
    weights = Weights(0.95, truth.weights, (np.zeros(0),) * len(options))
    return hypervolume([(options.cost(c), truth.exact(c)) for c in _sweep(options, weights)], WORST)


def write_trials(folder, parameters):
    """Write what NNI's manager keeps of trials that it started."""
    (folder / "db").mkdir()
    connection = sqlite3.connect(folder / "db" / "nni.sqlite")
    with contextlib.closing(connection), connection:
        connection.execute("create table TrialJobEvent (trialJobId, event, data)")
        for number, chosen in enumerate(parameters):
            data = json.dumps({"parameter_id": number, "parameters": chosen})
            rows = [(f"t{number}", "WAITING", data), (f"t{number}", "RUNNING", None)]
            connection.executemany("insert into TrialJobEvent values (?, ?, ?)", rows)
