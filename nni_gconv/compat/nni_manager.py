"""Rough edges of NNI's manager: starting it, watching it, and what it leaves undone."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nni_gconv.errors import ConfigError

EXPERIMENT_MARK = "NNI_GCONV_EXPERIMENT"
"""Variable that every process of an experiment we started carries: its NNI experiment id."""

WATCHED_BY = "NNI_GCONV_WATCHED_BY"
"""Another one: number and start of the process that started the manager and watches it."""

WAYS = "ways.json"
"""File beside those of :func:`write_launch_files`: how the manager reaches other machines,
``{"host:port": {"keys": {type: SHA-256 in hexadecimal}, "command": text or null}}``: the host keys
that it may meet, and the shell command that makes the connection where one is needed."""

_SCRIPTS = ("guard.js", "parameters.js", "remote.js", "patience.js", "stopped.js")
_SHIMS = Path(__file__).parents[1] / "_shims"


def write_launch_files(folder: Path) -> None:
    """Write what an experiment needs beside NNI: repairs of its manager and our commands.

    Parameters
    ----------
    folder : Path
        Private folder of the experiment. Gets the scripts that the manager loads first, and
        ``bin/`` with ``tensorboard`` (on loopback only) and ``nni-gconv`` (the one of this very
        Python).
    """
    bin_folder = folder / "bin"
    bin_folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    python = shlex.quote(sys.executable)
    root = Path(__file__).resolve().parents[1]
    installed = {Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")}
    # From a source tree that is not installed, trials find the package by its path.
    environment = (
        ""
        if root in installed
        else f'PYTHONPATH={shlex.quote(str(root))}"${{PYTHONPATH:+:$PYTHONPATH}}" '
    )
    for name in ("bind.js", "tensorboard_guard.py", *_SCRIPTS):
        (folder / name).write_bytes((_SHIMS / name).read_bytes())
    for name in ("tensorboard", "nni-gconv"):
        text = (_SHIMS / f"{name}.sh").read_text(encoding="utf-8")
        text = text.replace("@python@", python).replace("@environment@", environment)
        text = text.replace("@folder@", shlex.quote(str(folder.absolute())))
        script = bin_folder / name
        script.write_text(text, encoding="utf-8")
        script.chmod(0o700)


def launch_path(folder: Path | None = None) -> str:
    """Return the ``PATH`` of an experiment: our commands, this Python's folder, then the user's."""
    # Not resolved: the python of a virtual environment is a link out of it.
    ours = [str(folder / "bin")] if folder else []
    return os.pathsep.join([*ours, str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def write_resume_file(
    folder: Path,
    *,
    again: Sequence[str] = (),
    tried: str | None = None,
    max_trials: int | None = None,
    concurrency: int | None = None,
) -> None:
    """Write what our repair of NNI's resume goes by, beside the launch files.

    Parameters
    ----------
    folder : Path
        Private folder of the experiment, as for :func:`write_launch_files`.
    again : sequence of str
        Ids of trials that have ended and shall go on all the same.
    tried : str, optional
        JSON of the entries that NNI's tuner is to import instead of those with a result.
    max_trials, concurrency : int, optional
        New values of ``maxTrialNumber`` and ``trialConcurrency``.
    """
    asked = {
        "again": list(again),
        "tried": tried,
        "maxTrialNumber": max_trials,
        "trialConcurrency": concurrency,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resume.js").write_bytes((_SHIMS / "resume.js").read_bytes())
    (folder / "resume.json").write_text(json.dumps(asked), encoding="utf-8")


def start_manager(
    config: Any, experiment_id: str, port: int, folder: Path, *, loopback: bool = True
) -> subprocess.Popen[bytes]:
    """Start NNI's manager process, as ``nnictl create`` does but on the loopback interface.

    Where :func:`write_resume_file` has been called it resumes, as ``nnictl resume`` does.

    Parameters
    ----------
    config : nni.experiment.ExperimentConfig
        A canonical configuration (``config.canonical_copy()``).
    experiment_id : str
        A new id of NNI's kind.
    port : int
        Port of web UI and REST API.
    folder : Path
        Private folder that :func:`write_launch_files` filled.
    loopback : bool, default True
        Listen on 127.0.0.1 only; False leaves NNI's own way, every interface.

    Returns
    -------
    subprocess.Popen
        The manager, leader of its own process group so that Ctrl-C does not reach it.
    """
    import nni_node
    import psutil
    from nni.experiment.launcher import NniManagerArgs
    from nni.tools.nnictl.config_utils import Experiments

    node = Path(nni_node.__path__[0])
    resumes = (folder / "resume.json").is_file()
    action = "resume" if resumes else "create"
    args = NniManagerArgs(action, experiment_id, config, port, False, False, None, None)
    command = [str(node / "node"), "--max-old-space-size=4096", "--trace-uncaught"]
    for script in ("bind.js", *_SCRIPTS) if loopback else _SCRIPTS:
        command += ["--require", str(folder / script)]
    if resumes:
        command += ["--require", str(folder / "resume.js")]
    command += [str(node / "main.js"), *args.to_command_line_args()]
    env = {**os.environ, "PATH": launch_path(folder), EXPERIMENT_MARK: experiment_id}
    own = psutil.Process()
    env[WATCHED_BY] = f"{own.pid} {own.create_time()}"
    env["NNI_GCONV_OPEN"] = "" if loopback else "1"
    if not loopback:  # trials elsewhere, and people, call this machine by its name
        services = config.training_service
        named = [socket.gethostname(), getattr(config, "nni_manager_ip", None)]
        for one in services if isinstance(services, list) else [services]:
            named.append(getattr(one, "nni_manager_ip", None))
        names = [env.get("NNI_GCONV_HOSTS"), *(str(name).lower() for name in named if name)]
        env["NNI_GCONV_HOSTS"] = ",".join(filter(None, names))
    if (folder / WAYS).is_file():
        env["NNI_GCONV_WAYS"] = str(folder / WAYS)
    # NNI reaches its own manager over HTTP: a proxy of the user must not stand between them.
    for key in ("NO_PROXY", "no_proxy"):
        env[key] = ",".join(filter(None, [env.get(key), "localhost,127.0.0.1"]))
    working = Path(config.experiment_working_directory)
    log = working / experiment_id / "log"
    log.mkdir(parents=True, exist_ok=True)
    with (
        (log / "nnictl_stdout.log").open("ab") as out,
        (log / "nnictl_stderr.log").open("ab") as err,
    ):
        process = subprocess.Popen(
            command, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
            cwd=node, env=env, start_new_session=True,
        )  # fmt: skip
    # Not its default, which is the home folder that there was at the import.
    Experiments(str(Path.home() / "nni-experiments")).add_experiment(
        experiment_id, port, int(time.time() * 1000), args.mode, config.experiment_name,
        pid=process.pid, logDir=str(working),
    )  # fmt: skip
    with contextlib.suppress(OSError):  # a convenience of nnictl, as its failure is there
        link = working / f"_latest.{experiment_id}"
        link.symlink_to(experiment_id, target_is_directory=True)
        link.replace(working / "_latest")
    return process


def load_experiment_config(data: dict[str, Any], base: Path) -> Any:
    """Build and check NNI's ``ExperimentConfig`` from a mapping.

    Parameters
    ----------
    data : dict
        The content of an experiment file.
    base : Path
        Folder that relative paths start from.

    Returns
    -------
    nni.experiment.ExperimentConfig
        Canonical: absolute paths, the search space read in.

    Raises
    ------
    ConfigError
        With NNI's own words on one line, names as they are written in the file.
    """
    from nni.experiment.config import ExperimentConfig
    from nni.experiment.config.utils import set_base_path, unset_base_path

    quiet_nni()
    unset_base_path()  # NNI leaves it set when a constructor raises, and then asserts
    set_base_path(base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ExperimentConfig(**data).canonical_copy()
    except AssertionError as error:  # most of NNI's carry no words: the line itself is the message
        line = traceback.extract_tb(error.__traceback__)[-1].line or ""
        reason = str(error) or line.removeprefix("assert ").replace("self.", "") + " does not hold"
        raise ConfigError(_nni_words(reason)) from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(_nni_words(str(error))) from None
    finally:
        unset_base_path()


def experiment_mapping(config: Any) -> dict[str, Any]:
    """Write NNI's ``ExperimentConfig`` as the content of an experiment file.

    Fields that were not set are left out, and paths stay as they are: NNI's own ``json()`` checks
    first, and says little of what is wrong.
    """
    from dataclasses import MISSING, fields, is_dataclass

    from nni.experiment.config.utils import camel_case

    def is_set(value: Any) -> bool:
        if isinstance(value, dict):
            return value.get("name") != "_none_"  # a tuner that nobody chose
        return value is not None and value is not MISSING

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            content = {camel_case(f.name): plain(getattr(value, f.name)) for f in fields(value)}
            return {key: inner for key, inner in content.items() if is_set(inner)}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return str(value) if isinstance(value, Path) else value

    found: dict[str, Any] = plain(config)
    return found


def _nni_words(message: str) -> str:
    """Write a message of NNI's configuration classes with the names that stand in the file."""
    message = re.sub(r"^(\w+Config): ", "", message)
    message = re.sub(
        r"^_?(\w+)Config does not have field\(s\) (.+)$", r"unknown key \2 (\1)", message
    )
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message).replace("typing.", "")
    return re.sub(r"(?<=[a-z])_([a-z])", lambda m: m[1].upper(), " ".join(message.split()))


def nni_algorithms(kind: str) -> set[str]:
    """Return the names of NNI's built-in and registered ``"tuner"`` or ``"assessor"`` classes."""
    from nni.tools.package_utils.config_manager import get_all_algo_meta

    metas = [meta for meta in get_all_algo_meta() if meta.algo_type == kind]
    return {name for meta in metas for name in (meta.name, meta.alias) if name}


def algorithm_class(name: str) -> str | None:
    """Return the class behind the name of a registered tuner or assessor, None for NNI's own."""
    from nni.tools.package_utils.config_manager import get_algo_meta

    meta = get_algo_meta(name)
    return None if meta is None or meta.is_builtin else meta.class_name


def builtin_class(name: str) -> str | None:
    """Return the class behind the name of one of NNI's own tuners or assessors."""
    from nni.tools.package_utils.config_manager import get_algo_meta

    meta = get_algo_meta(name)
    return meta.class_name if meta is not None and meta.is_builtin else None


def quiet_nni() -> None:
    """Keep NNI's log off standard output, where our tables and JSON go."""
    from nni.runtime.log import silence_stdout

    silence_stdout()


def dispatcher_exception(log: str) -> str | None:
    """Find the exception that ended NNI's dispatcher (tuner and assessor) in its log.

    The manager does not notice it: the experiment would stay RUNNING for ever. An ERROR without a
    traceback is only a complaint (BatchTuner logs one always), and so is one of another logger.

    Parameters
    ----------
    log : str
        Text of ``dispatcher.log``.

    Returns
    -------
    str or None
        Last line of the traceback with the place in the tuner, None while all is well.

    Examples
    --------
    >>> dispatcher_exception("[2024-01-01 00:00:00] INFO (nni.x/MainThread) Dispatcher started")
    """
    records = re.split(r"^(?=\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] )", log, flags=re.MULTILINE)
    for record in records:
        head, _, body = record.partition("Traceback (most recent call last):")
        if body and re.search(r"\] ERROR \(nni\.(main|runtime\.msg_dispatcher_base)\b", head):
            lines = body.strip("\n").splitlines()
            places = [text.strip() for text in lines if text.startswith('  File "')]
            return f"{lines[-1].strip()} ({places[-1]})" if places else lines[-1].strip()
    return None


def dispatcher_folder() -> Path | None:
    """Return the trials' code directory of the experiment whose tuner this process runs.

    NNI tells a tuner nothing about its experiment, but hands the configuration to the process that
    it lives in, on the command line. None in any other process.
    """
    for given, value in itertools.pairwise(sys.argv):
        if given == "--exp_params":
            config = json.loads(base64.b64decode(value))
            service = config.get("trainingService")
            first = service[0] if isinstance(service, list) and service else service
            folder = (first or {}).get("trialCodeDirectory") or config.get("trialCodeDirectory")
            return Path(folder) if folder else None
    return None


def link_tensorboard(output_dir: str | Path) -> Path | None:
    """Make the web UI's TensorBoard button show what a trial writes.

    NNI opens ``<experiment>/trials/<id>/output/tensorboard``; a trial is given
    ``<experiment>/environments/<env>/trials/<id>``. A trial calls this at its start, because the
    button leaves an empty folder behind that would be in the way (an empty one is replaced).

    Parameters
    ----------
    output_dir : str or Path
        The trial's ``NNI_OUTPUT_DIR``; events belong into its sub-folder ``tensorboard``, which
        is made.

    Returns
    -------
    Path or None
        The link; None where `output_dir` is not laid out as NNI does it or a link cannot be made
        (training goes on without the button).

    Examples
    --------
    >>> link_tensorboard("runs/somewhere/else") is None
    True
    """
    output = Path(output_dir).absolute()
    if len(output.parts) < 5 or (output.parts[-2], output.parts[-4]) != ("trials", "environments"):
        return None
    events = output / "tensorboard"
    link = output.parents[3] / "trials" / output.name / "output" / "tensorboard"
    try:
        events.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and link.resolve() == events.resolve():
            return link
        if link.is_dir() and not link.is_symlink():
            link.rmdir()  # raises when somebody has written there: then it stays
        temporary = link.with_name(f"tensorboard.{os.getpid()}")
        temporary.symlink_to(events, target_is_directory=True)
        temporary.replace(link)
    except OSError:
        return None
    return link
