"""What finished trials say about which layers forgive: Bayesian linear regression.

A trial that takes the share x_l of layer l is expected to score

    score = top - sum_l w_l x_l + (effect of the keys that cost nothing) + noise

with one weight a layer. A priori all weights are alike: w_l = s (common, unknown) plus a deviation
of its own. How large deviations and noise are is read off the trials themselves (the pair that
makes them most likely), so that few trials move the weights little and many freely. No weight is
taken to be below a tenth of the common one: nothing is for free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nni_gconv.tuning.options import Choice, Options

Floats = NDArray[np.float64]

#: Standard deviations that are tried, in units of the scores' own: of the trials' scores due to
#: deviations between layers, and of the noise.
_DEVIATIONS = (0.1, 0.3, 0.6, 1.0, 2.0)
_NOISES = (0.03, 0.1, 0.2, 0.4, 0.8)
_BROAD = 10.0
_FREE = 0.3
_FLOOR = 0.1


@dataclass(frozen=True)
class Weights:
    """One guess at the weights.

    Attributes
    ----------
    top : float
        Score with nothing taken.
    layers : ndarray of float64, shape (decisions,)
        Loss of score for all of a layer; 0 for decisions without cost.
    free : tuple of ndarray
        For decisions without cost, what each option adds; empty arrays for the others.
    """

    top: float
    layers: Floats
    free: tuple[Floats, ...]

    def losses(self, options: Options, index: int) -> Floats:
        """Loss of score that each option of a decision is expected to bring."""
        decision = options.decisions[index]
        if decision.lost is None:
            return -self.free[index]
        return self.layers[index] * decision.lost

    def score(self, options: Options, choice: Choice) -> float:
        """Score that a trial is expected to reach."""
        lost = sum(float(self.losses(options, i)[option]) for i, option in enumerate(choice))
        return self.top - lost


class Surrogate:
    """Weights as they are known after some trials; :func:`fit` makes it.

    Attributes
    ----------
    mean : Weights
        The best guess.
    spread : ndarray of float64, shape (decisions,)
        Standard deviation of each layer's weight.
    """

    def __init__(self, options: Options, mean: Floats, root: Floats, scale: float) -> None:
        self._options, self._mean, self._root, self._scale = options, mean, root, scale
        self.mean = self._weights(mean)
        variance = (root**2).sum(1)
        self.spread = scale * np.sqrt(variance[1 : 1 + len(options)])

    def sample(self, rng: np.random.Generator) -> Weights:
        """Draw weights as likely as they are (Thompson sampling)."""
        return self._weights(self._mean + self._root @ rng.standard_normal(self._root.shape[1]))

    def _weights(self, theta: Floats) -> Weights:
        number = len(self._options)
        layers = np.zeros(number)
        costly = list(self._options.costly)
        drawn = theta[1 : 1 + number][costly] * self._scale
        common = max(float(self._mean[1 : 1 + number][costly].mean()) * self._scale, 1e-6)
        layers[costly] = np.maximum(drawn, _FLOOR * common)
        free, place = [], 1 + number
        for decision in self._options.decisions:
            size = 0 if decision.lost is not None else len(decision.values)
            free.append(theta[place : place + size] * self._scale)
            place += size
        return Weights(float(theta[0]) * self._scale, layers, tuple(free))


def fit(options: Options, choices: Sequence[Choice], scores: Sequence[float]) -> Surrogate | None:
    """Learn the weights from finished trials.

    Parameters
    ----------
    options : Options
        Of the search space.
    choices : sequence of tuple of int
        Options that each trial had.
    scores : sequence of float
        What it reached; more is better.

    Returns
    -------
    Surrogate or None
        None while the trials say nothing: fewer than three, or all alike.

    Examples
    --------
    >>> halves = {"_type": "choice", "_value": [1, 2], "macs": [0.5, 0.25]}
    >>> options = Options.from_space({"a": halves, "b": halves})
    >>> trials = [(0, 0), (0, 1), (1, 0), (1, 1)] * 3
    >>> found = fit(options, trials, [0.9 - 0.3 * a - 0.1 * b for a, b in trials])
    >>> bool(found.mean.layers[0] > 2 * found.mean.layers[1])
    True
    """
    y = np.asarray(scores, np.float64)
    if len(y) < 3 or np.ptp(y) <= 1e-12:
        return None
    scale, centre = float(y.std()), float(y.mean())
    phi = np.array([_features(options, choice) for choice in choices])
    target = (y - centre) / scale
    best: tuple[float, Floats, Floats] | None = None
    for deviation in _DEVIATIONS:
        prior = _prior(options, phi, deviation)
        spread = phi @ prior @ phi.T
        for noise in _NOISES:
            covariance = spread + noise**2 * np.eye(len(y))
            likely, solved = _likelihood(covariance, target)
            if best is None or likely > best[0]:
                best = likely, prior, np.linalg.inv(covariance)
                mean = prior @ phi.T @ solved
    assert best is not None
    _, prior, inverse = best
    posterior = prior - prior @ phi.T @ inverse @ phi @ prior
    mean = mean.copy()
    mean[0] += centre / scale
    return Surrogate(options, mean, _root(posterior), scale)


def _features(options: Options, choice: Choice) -> Floats:
    """One row: 1, minus the share lost of each decision, which free options are taken."""
    lost, free = np.zeros(len(options)), []
    for i, (decision, option) in enumerate(zip(options.decisions, choice, strict=True)):
        if decision.lost is not None:
            lost[i] = -decision.lost[option]
        else:
            free.append(np.eye(len(decision.values))[option])
    return np.concatenate([[1.0], lost, *free])


def _prior(options: Options, phi: Floats, deviation: float) -> Floats:
    """Covariance of all weights before any trial; scores have a standard deviation of 1."""
    number = len(options)
    costly = np.array([d.lost is not None for d in options.decisions])
    lost = -phi[:, 1 : 1 + number][:, costly]
    total = max(float(np.sqrt((lost.sum(1) ** 2).mean())), 1e-9)
    single = max(float(np.sqrt((lost**2).sum(1).mean())), 1e-9)
    prior = np.zeros((phi.shape[1], phi.shape[1]))
    prior[0, 0] = _BROAD**2
    block = np.full((costly.sum(), costly.sum()), (_BROAD / total) ** 2)
    block[np.diag_indices_from(block)] += (deviation / single) ** 2
    rows = 1 + np.flatnonzero(costly)
    prior[np.ix_(rows, rows)] = block
    rest = np.arange(1 + number, phi.shape[1])
    prior[rest, rest] = _FREE**2
    return prior


def _likelihood(covariance: Floats, target: Floats) -> tuple[float, Floats]:
    """Logarithm of a normal density, without its constant, and covariance^-1 target."""
    lower = np.linalg.cholesky(covariance)
    half = np.linalg.solve(lower, target)
    solved = np.linalg.solve(lower.T, half)
    return float(-0.5 * half @ half - np.log(np.diag(lower)).sum()), solved


def _root(covariance: Floats) -> Floats:
    """A square root of a covariance that rounding may have made slightly indefinite."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * np.sqrt(values.clip(0))
