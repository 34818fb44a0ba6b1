"""Starting an NNI experiment safely, and leaving nothing behind when it is over."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from nni_gconv.experiment.artefact_transfer import Courier
from nni_gconv.experiment.checks import ExperimentPlan, as_json, made_ready, preflight
from nni_gconv.experiment.manager import ManagerClient, ManagerError, TrialState
from nni_gconv.experiment.remote_machines import open_links
from nni_gconv.experiment.running import RunningExperiment
from nni_gconv.experiment.watch import Outcome, last_lines, watch

if TYPE_CHECKING:
    from nni.experiment import ExperimentConfig

    from nni_gconv.experiment.progress import ExperimentView

_START_SECONDS = 60.0


def start(plan: ExperimentPlan) -> RunningExperiment:
    """Start the manager of a checked experiment and hand it the experiment.

    Parameters
    ----------
    plan : ExperimentPlan
        From :func:`nni_gconv.experiment.checks.preflight`.

    Returns
    -------
    RunningExperiment
        Its trials start within seconds.

    Raises
    ------
    ManagerError
        The manager did not come up; its last words are in the message, nothing is left running.
    RemoteError
        A machine cannot be used; nothing is left running.

    Examples
    --------
    >>> from nni_gconv.experiment import experiment_file, preflight, start
    >>> experiment = start(preflight(experiment_file("quickstart")))  # doctest: +SKIP
    >>> experiment.client.status()  # doctest: +SKIP
    ('RUNNING', [])
    >>> experiment.stop()  # doctest: +SKIP
    """
    from nni.experiment.management import generate_experiment_id

    from nni_gconv.compat import quiet_nni, start_manager, write_launch_files

    quiet_nni()
    experiment_id = plan.resumes.id if plan.resumes else generate_experiment_id()
    private = plan.folder / experiment_id / "launch"
    links = open_links(plan, private)
    write_launch_files(private)
    try:
        process = start_manager(
            plan.config, experiment_id, plan.port, private, loopback=plan.loopback
        )
    except BaseException:
        links.close()
        raise
    experiment = RunningExperiment(experiment_id, plan, process, ManagerClient(plan.port), links)
    try:
        _wait_until_ready(experiment)
        if plan.loopback:
            links.forward(plan.port)
        experiment.client.begin(as_json(plan.config))
    except BaseException:
        experiment.stop()
        raise
    return experiment


def _wait_until_ready(experiment: RunningExperiment) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if experiment.process.poll() is not None:
            words = last_lines(experiment.log_folder / "nnictl_stderr.log", 3).replace("\n", " ")
            raise ManagerError(f"NNI's manager did not start: {words or 'it said nothing'}")
        try:
            if experiment.client.status()[0] != "INITIALIZING":
                return
        except ManagerError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def run_experiment(
    file: str | Path | ExperimentConfig | ExperimentPlan,
    *,
    port: int | None = None,
    concurrency: int | None = None,
    gpus: int | None = None,
    output: Path | None = None,
    loopback: bool = True,
    keep_ui: bool = False,
    max_failed: int = 5,
    view: ExperimentView | None = None,
    max_trials: int | None = None,
    overrides: Sequence[str] = (),
) -> Outcome:
    """Check, start and watch an experiment until it has ended.

    Parameters
    ----------
    file : str, Path, nni.experiment.ExperimentConfig or ExperimentPlan
        An NNI 3.0 experiment YAML (the same file works with ``nnictl create``), or a configuration
        made in Python. What :func:`nni_gconv.experiment.checks.preflight` has checked already
        is started as it is.
    port, concurrency, gpus, output, loopback, max_trials, overrides
        As in :func:`nni_gconv.experiment.checks.preflight`.
    keep_ui : bool, default False
        Leave the web UI running after an end by itself (not after Ctrl-C); else nothing is left.
    max_failed : int, default 5
        Give up when this many trials have ended and every one of them failed.
    view : ExperimentView, optional
        Shows what happens; silent without.

    Returns
    -------
    Outcome
        How it ended; ``outcome.ok`` and ``outcome.exit_code`` say whether well.

    Raises
    ------
    ConfigError
        The file is wrong; nothing was started.
    RemoteError
        A machine in it cannot be used; nothing was started.
    ManagerError
        NNI's manager did not come up.

    Examples
    --------
    >>> from nni_gconv.experiment import experiment_file, run_experiment
    >>> run_experiment(experiment_file("quickstart")).ok  # doctest: +SKIP
    True
    """
    from nni_gconv.experiment.progress import ExperimentView

    view = view or ExperimentView.silent()
    if isinstance(file, ExperimentPlan):
        plan = file
    else:
        plan = preflight(
            file, port=port, concurrency=concurrency, gpus=gpus, output=output, loopback=loopback,
            max_trials=max_trials, overrides=overrides,
        )  # fmt: skip
    with _terminate_as_interrupt():
        experiment = start(made_ready(plan))
        keep = False
        courier = Courier(experiment)

        def listen(status: str, trials: Sequence[TrialState]) -> None:
            view.update(status, trials)
            courier.update(trials)

        try:
            with view.showing(experiment):
                outcome = watch(experiment, listener=listen, max_failed=max_failed)
            view.fetched(courier.finish())
            # What runs on after Ctrl-C or on a broken manager is nothing to keep.
            keep = keep_ui and outcome.exit_code in (0, 3)
        finally:
            courier.close()
            if not keep:
                experiment.stop()
    view.ended(outcome, experiment if keep else None)
    return outcome


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat other ends like Ctrl-C, so that nothing is left.

    SIGTERM comes from a batch system or ``timeout``, SIGHUP from a terminal that is closed; under
    ``nohup`` that stays ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, interrupt)
        for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
