"""NNI's own tuners with the few lines that make them run to the end; see :mod:`nni_gconv.tuner`.

What is mended, each in NNI 3.0 on every stack:

- Hyperband and BOHB name their trials by strings, and NNI's bookkeeping for resumed experiments
  compares those with a number: ``TypeError`` at the first metric.
- A trial that an assessor stops may still report its result, and its end comes by another thread
  than its result. TPE then raises ``KeyError``, Evolution ``RuntimeError`` or ``KeyError``.

An exception in a tuner leaves the experiment RUNNING for ever, so these are not small.
"""

from __future__ import annotations

import threading
from typing import Any

import nni
from nni.algorithms.hpo.evolution_tuner import EvolutionTuner
from nni.algorithms.hpo.hyperband_advisor import Hyperband as _Hyperband
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from nni.runtime.tuner_command_channel import CommandType

_BUDGET = "TRIAL_BUDGET"


class StringIds:
    """Mixin for advisors whose trials are named by strings.

    It also gives the budget the name of a recipe's key: ``budget_key="finetune.epochs"``.
    """

    _budget_key = _BUDGET

    def is_created_in_previous_exp(self, param_id: Any) -> bool:
        """Only numbers can be of trials before a resume, which these advisors do not know."""
        return False

    def send(self, command: Any, data: str) -> None:
        """Send a trial its budget under the name that it knows."""
        if command is CommandType.NewTrialJob and self._budget_key != _BUDGET:
            message = nni.load(data)
            parameters = dict(message["parameters"])
            # Successive halving changes its own dictionaries: the message is a copy.
            parameters[self._budget_key] = round(parameters.pop(_BUDGET))
            data = nni.dump({**message, "parameters": parameters})
        super().send(command, data)  # type: ignore[misc]


class Hyperband(StringIds, _Hyperband):
    """NNI's Hyperband.

    Parameters
    ----------
    optimize_mode, R, eta, exec_mode
        NNI's.
    budget_key : str, default "TRIAL_BUDGET"
        The parameter that carries a trial's budget, such as ``finetune.epochs`` for a recipe.
    """

    def __init__(
        self,
        optimize_mode: str = "maximize",
        R: int = 60,
        eta: int = 3,
        exec_mode: str = "parallelism",
        budget_key: str = _BUDGET,
    ) -> None:
        self._budget_key = budget_key
        super().__init__(optimize_mode, R, eta, exec_mode)


class TPE(TpeTuner):
    """NNI's TPE; a result may come after its trial's end. Arguments are NNI's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.RLock()

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> Any:
        """Propose; meanwhile no trial ends."""
        with self._lock:
            return super().generate_parameters(parameter_id, **kwargs)

    def receive_trial_result(
        self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any
    ) -> None:
        """Take a result, of a trial that has ended too."""
        with self._lock:
            self._running_params.setdefault(parameter_id, self._params[parameter_id])
            super().receive_trial_result(parameter_id, parameters, value, **kwargs)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Forget a running trial."""
        with self._lock:
            super().trial_end(parameter_id, success, **kwargs)


class Evolution(EvolutionTuner):
    """NNI's Evolution; a result may come before or after its trial's end. Arguments are NNI's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.RLock()

    def generate_multiple_parameters(self, parameter_id_list: Any, **kwargs: Any) -> Any:
        """Propose; meanwhile no trial ends."""
        with self._lock:
            return super().generate_multiple_parameters(parameter_id_list, **kwargs)

    def receive_trial_result(
        self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any
    ) -> None:
        """Take a result; one whose trial was given up is passed over."""
        with self._lock:
            if parameter_id in self.running_trials:
                super().receive_trial_result(parameter_id, parameters, value, **kwargs)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Give a trial up, unless its result was faster."""
        with self._lock:
            super().trial_end(parameter_id, success or parameter_id not in self.running_trials)
