"""Talking to NNI's manager over its REST interface, always on the loopback address."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nni_gconv.compat import parse_metrics, parse_parameters
from nni_gconv.errors import NniGconvError

FAILED = frozenset({"FAILED", "SYS_CANCELED", "KILLED"})
ENDED = FAILED | {"SUCCEEDED", "USER_CANCELED", "EARLY_STOPPED"}


class ManagerError(NniGconvError):
    """NNI's manager does not answer, or answers that something is wrong."""


@dataclass(frozen=True)
class TrialState:
    """What NNI knows about one trial.

    Attributes
    ----------
    id : str
        NNI's id, five characters.
    number : int
        Order of submission, from 0; -1 where NNI has not said.
    status : str
        WAITING, RUNNING, SUCCEEDED, FAILED, USER_CANCELED, SYS_CANCELED, EARLY_STOPPED, UNKNOWN,
        or KILLED: a signal ended it and nobody had cancelled it.
    parameters : dict
        What the tuner chose, by dotted key.
    metrics : dict
        Flat numbers of the final result; a single number is ``{"default": it}``. Empty before.
    seconds : float or None
        From start to end; None while it runs.
    place : str
        Its folder, with the host in front where it is another machine's.
    progress : str
        How far it is while it runs; "" where nothing is known.
    shared_seconds : float
        What it trained for others too, or waited for them; none that follows does so again.
    """

    id: str
    number: int
    status: str
    parameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    place: str = ""
    progress: str = ""
    shared_seconds: float = 0.0

    @property
    def host(self) -> str:
        """The machine it runs on, as the experiment file names it; "" for this one."""
        host, colon, _ = self.place.partition(":~/")
        return host if colon else ""

    @property
    def ended(self) -> bool:
        """Whether it is over, well or badly."""
        return self.status in ENDED

    @property
    def failed(self) -> bool:
        """Whether it ended by itself without a result."""
        return self.status in FAILED

    @property
    def score(self) -> float | None:
        """The number that the tuner looks at."""
        return self.metrics.get("default")


def trials_in_words(count: int) -> str:
    """Write a number of trials.

    Examples
    --------
    >>> trials_in_words(1), trials_in_words(6)
    ('1 trial', '6 trials')
    """
    return f"{count} trial{'s' * (count != 1)}"


def parse_trial(job: Mapping[str, Any]) -> TrialState:
    """Read one entry of ``GET /trial-jobs``.

    Examples
    --------
    >>> parse_trial({"trialJobId": "aB3de", "status": "RUNNING", "sequenceId": 4}).number
    4
    """
    final = job.get("finalMetricData") or [{}]
    chosen = job.get("hyperParameters") or [None]
    start, end = job.get("startTime"), job.get("endTime")
    return TrialState(
        id=str(job.get("trialJobId", job.get("id", ""))),
        number=int(job.get("sequenceId", -1)),
        status=str(job.get("status", "UNKNOWN")),
        parameters=parse_parameters(chosen[0]),
        metrics=parse_metrics(final[0].get("data")),
        place=str(job.get("logPath") or ""),
        seconds=(end - start) / 1000 if start is not None and end is not None else None,
    )


class ManagerClient:
    """A small client of the manager of one experiment.

    Parameters
    ----------
    port : int
        Port of the web UI.
    timeout : float, default 20
        Seconds to wait for an answer.

    Examples
    --------
    >>> client = ManagerClient(8080)
    >>> client.url
    'http://127.0.0.1:8080'
    """

    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self.port = port
        self.timeout = timeout

    @property
    def url(self) -> str:
        """Address of the web UI."""
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, api: str, data: Any = None, timeout: float | None = None) -> Any:
        """Send one request and return the decoded answer, None where it is empty.

        Raises
        ------
        ManagerError
            Nobody answers, or the answer is an error.
        """
        # http.client and not urllib: no proxy of the environment may come between.
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=timeout or self.timeout
        )
        try:
            body = None if data is None else json.dumps(data)
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, f"/api/v1/nni{api}", body, headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise ManagerError(f"NNI's manager at {self.url} does not answer: {reason}") from None
        finally:
            connection.close()
        if response.status >= 400:
            raise ManagerError(f"NNI's manager refused {method} {api}: {text[:500]}")
        try:
            return json.loads(text) if text else None
        except ValueError:
            return text

    def status(self) -> tuple[str, list[str]]:
        """Return the status of the experiment and the errors NNI noted."""
        answer = self.request("GET", "/check-status")
        if not isinstance(answer, dict):  # before it is ready it says INITIALIZING in plain text
            return str(answer), []
        return str(answer.get("status")), [str(error) for error in answer.get("errors") or []]

    def trials(self) -> list[TrialState]:
        """Return all trials submitted so far, in their order."""
        jobs = self.request("GET", "/trial-jobs") or []
        return sorted((parse_trial(job) for job in jobs), key=lambda trial: trial.number)

    def reported(self) -> dict[str, tuple[int, float | None]]:
        """Return how often each trial has reported and the last number, by the trial's id."""
        found = {}
        for metric in self.request("GET", "/metric-data-latest") or []:
            if metric.get("type") == "PERIODICAL":
                last = parse_metrics(metric.get("data")).get("default")
                found[str(metric.get("trialJobId"))] = int(metric.get("sequence", 0)) + 1, last
        return found

    def generated(self) -> int:
        """Return how many trials the tuner has made, with those not yet submitted."""
        return int((self.request("GET", "/experiment") or {}).get("nextSequenceId", 0))

    def trial_file(self, trial_id: str, name: str) -> str:
        """Return a log file of a trial, fetched from the machine it ran on; "" if there is none."""
        try:
            text = str(self.request("GET", f"/trial-file/{trial_id}/{name}") or "")
        except ManagerError:
            return ""
        return "" if text.strip() == f"{name} is empty." else text

    def begin(self, config: Mapping[str, Any]) -> None:
        """Send the experiment; the manager sets up its machines and its tuner before it answers."""
        self.request("POST", "/experiment", config, timeout=120)

    def stop(self) -> None:
        """Ask the manager to stop trials, tuner and itself; it answers at once."""
        self.request("DELETE", "/experiment")
