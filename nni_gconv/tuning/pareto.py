"""The tuner itself: NNI's hooks around :class:`nni_gconv.tuning.propose.Proposer`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import nni
from nni.tuner import Tuner

from nni_gconv.compat import dispatcher_folder, read_tried
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.files import write_json
from nni_gconv.tuning.front import pareto
from nni_gconv.tuning.options import MEASURES, Choice, Options
from nni_gconv.tuning.propose import Proposer
from nni_gconv.tuning.records import read_records, records_in, scalar

_logger = logging.getLogger(__name__)

STATE = "pareto.json"
_MODES = ("maximize", "minimize")


class ParetoTuner(Tuner):
    """Fill the front of accuracy and cost, learning which layers forgive.

    The search space is one of choices that say what they cost (see
    :mod:`nni_gconv.tuning.options`); ``nni-gconv search-space RECIPE.yml`` writes one with a key
    a layer. Each trial gets the options that lose least within some budget, as far as is known by
    then: from the trials that have finished a weight is learnt for every layer, and the budget is
    where the front of what was reached has its largest gap.

    Resuming with ``nnictl resume`` goes on with all finished trials, and none that was proposed
    before the stop is proposed again. What was learnt is written after every result to
    ``pareto.json`` in the experiment's checkpoint folder.

    Parameters
    ----------
    budget : {"macs", "params"}, default "macs"
        The cost axis: which of the search space's lists counts. If trials report ``macs_ratio`` or
        ``params_ratio``, that is taken for what they really cost.
    low, high : float, optional
        Part of the axis to fill, shares of the dense network; default: all that can be reached.
    metric : str, default "default"
        The number of a trial's result that is the score.
    optimize_mode : {"maximize", "minimize"}, default "maximize"
        Which scores are good.
    warmup : int, default 6
        Trials before what was learnt is used.
    seed : int, default 0
        Same seed and same results in the same order, same proposals.
    earlier : str or list of str, optional
        JSON files of trials of the same search space to begin with, relative to the trials' code
        directory: of ``nnictl experiment export``, ``nni-gconv report --json`` or a
        ``pareto.json``.
    learn : bool, default True
        False keeps all layers' weights alike, for comparison.

    Raises
    ------
    ConfigError
        An argument, a file of earlier trials or the search space is wrong.

    Examples
    --------
    In an experiment file::

        tuner:
          className: nni_gconv.tuner.ParetoTuner
          classArgs: {budget: macs, low: 0.2, high: 0.8, seed: 0}

    >>> tuner = ParetoTuner(low=0.6)
    >>> halves = {"_type": "choice", "_value": [1, 2], "macs": [0.4, 0.2]}
    >>> tuner.update_search_space({"a": halves, "b": halves})
    >>> given = tuner.generate_parameters(0)
    >>> tuner.receive_trial_result(0, given, {"default": 0.9, "macs_ratio": 0.8})
    >>> tuner.front
    [(0.8, 0.9)]
    """

    def __init__(
        self,
        budget: str = "macs",
        low: float | None = None,
        high: float | None = None,
        metric: str = "default",
        optimize_mode: Literal["maximize", "minimize"] = "maximize",
        warmup: int = 6,
        seed: int = 0,
        earlier: str | Sequence[str] | None = None,
        learn: bool = True,
    ) -> None:
        super().__init__()
        if budget not in MEASURES:
            raise ConfigError(unknown_name("budget", budget, MEASURES, "classArgs.budget"))
        if optimize_mode not in _MODES:
            where = "classArgs.optimize_mode"
            raise ConfigError(unknown_name("mode", optimize_mode, _MODES, where))
        for name, value in (("low", low), ("high", high)):
            if value is not None and not (_number(value) and 0 < value <= 1):
                raise ConfigError(f"classArgs.{name}: {value!r} is not allowed (a share up to 1)")
        for name, count in (("warmup", warmup), ("seed", seed)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ConfigError(f"classArgs.{name}: {count!r} is not allowed (a number from 0)")
        self.budget, self.metric, self.warmup, self.seed = budget, metric, warmup, seed
        self.low, self.high, self.learn = low, high, learn
        self._sign = 1.0 if optimize_mode == "maximize" else -1.0
        files = [earlier] if isinstance(earlier, str) else list(earlier or ())
        folder = dispatcher_folder() or Path()
        self._earlier = [
            r for name in files for r in read_records(folder / Path(name).expanduser())
        ]
        # NNI calls from two threads: results come in one, ends of trials in the other.
        self._lock = threading.RLock()
        self._proposer: Proposer | None = None
        self._records: list[tuple[Mapping[str, Any], Any]] = []
        self._finished: list[tuple[Choice, float, float]] = []
        self._running: dict[int, Choice] = {}
        self._tried: dict[Choice, None] = {}
        self._restore = False

    # -- what preflight asks before anything runs -------------------------------------------------

    @classmethod
    def check_experiment(cls, space: Mapping[str, Any], **class_args: Any) -> None:
        """Raise a ConfigError for what would stop the tuner: its arguments, the search space."""
        tuner = cls(**class_args)
        tuner.update_search_space(dict(space))

    # -- NNI's hooks ------------------------------------------------------------------------------

    def update_search_space(self, search_space: Any) -> None:
        """Take a search space, at the start or a new one later; results that fit it are kept."""
        options = Options.from_space(search_space, self.budget)
        least, most = options.range
        low = least if self.low is None else self.low
        high = most if self.high is None else self.high
        if high < least:
            raise ConfigError(
                f"classArgs.high: {self.budget} of {high:g} cannot be reached; "
                f"the choices reach {least:.3f}"
            )
        if low > high:
            raise ConfigError(f"classArgs.low: {low:g} is more than high, {high:g}")
        with self._lock:
            self._proposer = Proposer(
                options, max(low, least), min(high, most), self.warmup, self.seed, self.learn
            )
            records, self._records = [*self._earlier, *self._records], []
            self._earlier, self._finished, self._tried = [], [], {}
            for parameters, value in records:
                self._learn(parameters, value)
            if self._restore:
                self._restore_proposals()

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, Any]:
        """Propose a trial.

        Raises
        ------
        nni.NoMoreTrialError
            Everything within the budgets has been tried.
        """
        with self._lock:
            proposer = self._ready()
            choice = proposer.next(self._finished, list(self._running.values()), self._tried)
            if choice is None:
                raise nni.NoMoreTrialError(f"all {len(self._tried)} trials within low and high ran")
            self._tried[choice] = None
            self._running[parameter_id] = choice
            self._save()
            return proposer.options.parameters(choice)

    def receive_trial_result(
        self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any
    ) -> None:
        """Learn from a finished trial."""
        with self._lock:
            choice = self._running.pop(parameter_id, None)
            if not isinstance(parameters, Mapping) and choice is not None:
                # Of several asked for at once NNI forgets the first when there are too few.
                parameters = self._ready().options.parameters(choice)
            self._learn(parameters, value)
            self._save()

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Forget a trial that ended without a result; it is not proposed again."""
        with self._lock:
            # The result of a trial that succeeded comes by another thread and may be late.
            if not success:
                self._running.pop(parameter_id, None)

    def import_data(self, data: Any) -> None:
        """Learn from trials of elsewhere, and from those that finished before a resume."""
        with self._lock:
            for parameters, value in records_in(data):
                self._learn(parameters, value)
            self._save()

    def load_checkpoint(self) -> None:
        """Note at a resume that NNI knows of trials of before."""
        with self._lock:
            self._restore = True
            if self._proposer is not None:  # the search space came first
                self._restore_proposals()

    # -- what is known ----------------------------------------------------------------------------

    @property
    def front(self) -> list[tuple[float, float]]:
        """Cost and score of the finished trials that no other beats in both."""
        with self._lock:
            signed = pareto((cost, score) for _, cost, score in self._finished)
            return [(cost, self._sign * score) for cost, score in signed]

    @property
    def weights(self) -> dict[str, float]:
        """Loss of score that taking all of a layer is expected to bring; empty if not known."""
        with self._lock:
            proposer = self._ready()
            known = proposer.surrogate(
                [choice for choice, _, _ in self._finished],
                [score for _, _, score in self._finished],
            )
            if known is None:
                return {}
            decisions = proposer.options.decisions
            return {decisions[i].name: known.mean.layers[i] for i in proposer.options.costly}

    def _ready(self) -> Proposer:
        if self._proposer is None:
            raise ConfigError("the tuner has got no search space")
        return self._proposer

    def _learn(self, parameters: Any, value: Any) -> None:
        if self._proposer is None:
            self._records.append((parameters, value))
            return
        options = self._proposer.options
        choice, score = options.choice(parameters), scalar(value, self.metric)
        if choice is None:
            _logger.warning("passed over a trial of another search space: %s", parameters)
            return
        self._tried[choice] = None
        if score is None:
            _logger.warning("passed over a result without a number %r: %s", self.metric, value)
            return
        cost = scalar(value, f"{self.budget}_ratio") if isinstance(value, Mapping) else None
        self._finished.append(
            (choice, options.cost(choice) if cost is None else cost, self._sign * score)
        )
        self._records.append((parameters, value))

    # -- the file ---------------------------------------------------------------------------------

    def _restore_proposals(self) -> None:
        """Count as tried what NNI started; what it was only handed before it stopped is free."""
        folder = self.get_checkpoint_path()
        if folder is None or not (Path(folder).parent / "db").is_dir():
            return
        try:
            started = read_tried(Path(folder).parent)
        except ConfigError as error:
            _logger.warning("trials may be proposed again: %s", error)
            return
        for trial in started:
            choice = self._ready().options.choice(trial["parameter"])
            if choice is not None:
                self._tried[choice] = None

    def _save(self) -> None:
        folder = self.get_checkpoint_path()
        if folder is None:
            return
        weights = sorted(self.weights.items(), key=lambda pair: pair[1])
        state = {
            "format": 1,
            "budget": self.budget,
            "front": [list(pair) for pair in self.front],
            "weights": dict(weights),
            "trials": [{"parameter": p, "value": v} for p, v in self._records],
        }
        try:
            write_json(Path(folder) / STATE, state)
        except (OSError, ValueError) as error:  # a full disk shall not end the experiment
            _logger.warning("%s cannot be written: %s", STATE, error)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
