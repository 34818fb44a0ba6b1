"""Everything that can be known to be wrong with an experiment before it starts.

``nnictl create`` returns 0 and the experiment dies a second later, or runs for ever without a
trial. Here each of these is one line that says what to change.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gconv.compat import experiment_mapping
from nni_gconv.errors import ConfigError, nearest, unknown_name
from nni_gconv.experiment.checks.algorithms import check_algorithms
from nni_gconv.experiment.checks.command import check_commands
from nni_gconv.experiment.checks.gpus import give_gpus, gpu_notes
from nni_gconv.experiment.checks.machines import (
    check_machine_list,
    platform_of,
    remote_notes,
    services_of,
    with_tunnel_end,
)
from nni_gconv.experiment.checks.plan import ExperimentPlan
from nni_gconv.experiment.checks.search_space import check_batch_space, check_space
from nni_gconv.experiment.checks.threads import thread_notes
from nni_gconv.experiment.checks.trial_recipe import trial_recipe
from nni_gconv.remote import plain_key, with_ssh_config
from nni_gconv.yaml12 import read_yaml

if TYPE_CHECKING:
    from nni.experiment import ExperimentConfig

_PLATFORMS = ("local", "remote", "openpai", "aml", "dlc", "kubeflow", "frameworkcontroller")
_OLD_KEYS = ("trainingServicePlatform", "authorName", "trial", "searchSpacePath")


def preflight(
    file: str | Path | ExperimentConfig,
    *,
    port: int | None = None,
    concurrency: int | None = None,
    gpus: int | None = None,
    output: Path | None = None,
    loopback: bool = True,
    max_trials: int | None = None,
    overrides: Sequence[str] = (),
) -> ExperimentPlan:
    """Check an experiment file and everything it names, without starting anything.

    Parameters
    ----------
    file : str, Path or nni.experiment.ExperimentConfig
        An NNI 3.0 experiment YAML, or a configuration made in Python, whose relative paths start
        from the working folder.
    port : int, optional
        Port of the web UI; by default a free one is chosen.
    concurrency : int, optional
        Trials at a time, instead of the file's ``trialConcurrency``.
    gpus : int, optional
        GPUs each trial takes, instead of the recipe's ``gpus``; on this machine alone
        ``trialConcurrency`` becomes what there is room for. 0: none, trials run on the CPU or see
        all GPUs.
    output : Path, optional
        Folder to keep the experiment in, instead of the file's ``experimentWorkingDirectory``.
    loopback : bool, default True
        Keep the web server on this machine.
    max_trials : int, optional
        Instead of the file's ``maxTrialNumber``.
    overrides : sequence of str
        ``key=value`` of the recipe, for every trial; what the tuner chooses comes after.

    Returns
    -------
    ExperimentPlan
        To be handed to :func:`nni_gconv.experiment.run_experiment`.

    Raises
    ------
    ConfigError
        The first thing found wrong: file, key, value and what is allowed.

    Examples
    --------
    >>> from nni_gconv.experiment import experiment_file, preflight
    >>> preflight(experiment_file("quickstart")).config.trial_concurrency
    2
    """
    if isinstance(file, str | Path):
        file = Path(file)
        data = _read(file)
    else:
        data = experiment_mapping(file)
        file = Path.cwd() / "experiment.config"
    _check_tools()
    data = with_ssh_config(data)
    if loopback:
        data = with_tunnel_end(data)
    if concurrency is not None:
        data = {k: v for k, v in data.items() if plain_key(k) != "trialconcurrency"}
        data["trialConcurrency"] = concurrency
    if max_trials is not None:
        data = {k: v for k, v in data.items() if plain_key(k) != "maxtrialnumber"}
        data["maxTrialNumber"] = max_trials
    if output is not None:
        data = {k: v for k, v in data.items() if plain_key(k) != "experimentworkingdirectory"}
        data["experimentWorkingDirectory"] = str(output.expanduser().absolute())
    if overrides:
        data = _overriding(data, overrides)
    try:
        config = _configure(file, data)
        if not config.tuner.class_name:  # a tuner of the user's may read anything
            batch = (config.tuner.name or "").lower() in ("batch", "batchtuner")
            (check_batch_space if batch else check_space)(config.search_space)
        notes = list(check_algorithms(config))
        _check_folders(config)
        check_commands(config)
        if gpus is not None:
            give_gpus(config, services_of(config), gpus, fit=concurrency is None)
        notes += _notes(config)
        if platform_of(config) == "local":
            service = config.training_service
            trial = trial_recipe(service.trial_command, Path(service.trial_code_directory))
            notes += gpu_notes(config, trial) + thread_notes(config, trial)
        else:
            notes += remote_notes(config, loopback=loopback)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    checked_port = free_port() if port is None else _check_port(port)
    return ExperimentPlan(file, config, checked_port, loopback, tuple(notes))


def _overriding(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Give values of the recipe to the command of every trial."""
    key = next((k for k in data if plain_key(k) == "trialcommand"), None)
    command = str(data[key]) if key is not None else ""
    if key is None or not command.startswith("nni-gconv run "):
        raise ConfigError("-o: the trial command is not 'nni-gconv run RECIPE', which takes it")
    words = shlex.join(word for text in overrides for word in ("-o", text))
    return {**data, key: f"{command} {words}"}


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        what = "is a folder, not an experiment file" if file.is_dir() else "no such file"
        raise ConfigError(f"{file}: {what}")
    try:
        data = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: an experiment is a mapping of keys, this is {data!r:.60}")
    return data


def _check_tools() -> None:
    # Looked up, not imported: pkg_resources warns, nnictl wraps standard output.
    if importlib.util.find_spec("pkg_resources") is None:
        raise ConfigError(
            "nnictl needs pkg_resources, which setuptools 81 dropped: "
            "pip install 'setuptools>=77.0.3,<81'"
        )
    if importlib.util.find_spec("nni") is None or importlib.util.find_spec("nni_node") is None:
        raise ConfigError("NNI is not complete (nni, nni_node): pip install nni==3.0")


def _configure(file: Path, data: dict[str, Any]) -> Any:
    from dataclasses import fields

    from nni.experiment.config import ExperimentConfig
    from nni.experiment.config.utils import camel_case

    from nni_gconv.compat import load_experiment_config

    old = [key for key in _OLD_KEYS if key in data]
    if old:
        raise ConfigError(
            f"{old[0]} belongs to NNI 1; this is NNI 3: trainingService: {{platform: local}}, "
            "trialCommand, searchSpaceFile"
        )
    known = {plain_key(field.name): camel_case(field.name) for field in fields(ExperimentConfig)}
    unknown = next((key for key in data if plain_key(key) not in known), None)
    if unknown is not None:
        raise ConfigError(unknown_name("key", unknown, _near_first(str(unknown), known.values())))
    given = {known[plain_key(key)]: value for key, value in data.items() if value is not None}
    _check_given(given)
    space_file = given.get("searchSpaceFile")
    if space_file is not None:
        path = file.parent / Path(str(space_file)).expanduser()
        if not path.is_file():
            raise ConfigError(f"searchSpaceFile: no such file: {path}")
    return load_experiment_config(data, file.parent.absolute())


def _near_first(name: str, names: Any) -> list[str]:
    # unknown_name cuts a long list short: of the 30 keys of NNI show those that may be meant.
    names = sorted(names)
    return nearest(name, names, count=8) or names


def _check_given(given: Mapping[str, Any]) -> None:
    """Check what NNI words badly or not at all; names are those of the documentation."""
    service = given.get("trainingService")
    listed = service if isinstance(service, list) else [service]
    services = [one for one in listed if isinstance(one, dict)]
    if not services or len(services) != len(listed):
        raise ConfigError("trainingService is not set; write trainingService: {platform: local}")
    for index, one in enumerate(services):
        place = f"trainingService[{index}]" if isinstance(service, list) else "trainingService"
        if one.get("platform") not in _PLATFORMS:
            where = f"{place}.platform"
            raise ConfigError(unknown_name("platform", one.get("platform"), _PLATFORMS, where))
        check_machine_list(one, place)
        for key, value in one.items():
            if plain_key(key) == "trialgpunumber" and value:
                raise ConfigError(_gpu_words(f"trainingService.{key}"))
    if given.get("trialGpuNumber"):
        raise ConfigError(_gpu_words("trialGpuNumber"))
    inner = [{plain_key(key) for key in one} for one in services]
    if "trialCommand" not in given and not all("trialcommand" in keys for keys in inner):
        raise ConfigError("trialCommand is not set; for example: nni-gconv run recipe.yml")
    if "trialConcurrency" not in given:
        raise ConfigError("trialConcurrency is not set: how many trials run at a time")
    if given.get("useAnnotation"):
        raise ConfigError("useAnnotation is not supported by NNI 3; use searchSpaceFile")
    if "searchSpaceFile" not in given and "searchSpace" not in given:
        raise ConfigError("the search space is not set; write searchSpaceFile or searchSpace")
    if "tuner" not in given and "advisor" not in given:
        raise ConfigError("tuner is not set; for example: tuner: {name: GridSearch}")
    _check_class_names(given)


def _check_class_names(given: Mapping[str, Any]) -> None:
    for kind in ("tuner", "assessor"):
        keys = (
            {plain_key(key) for key in given[kind]} if isinstance(given.get(kind), dict) else set()
        )
        if "classname" in keys and "codedirectory" not in keys:
            raise ConfigError(
                f"{kind}.codeDirectory is not set; NNI asks for one beside className, even of an "
                "installed package: codeDirectory: ."
            )


def _gpu_words(where: str) -> str:
    return (
        f"{where}: NNI's GPU scheduler can start processes without end; leave it out and set "
        "trialConcurrency to the number of GPUs: each trial takes a free one by itself"
    )


def _check_folders(config: Any) -> None:
    folder = Path(config.experiment_working_directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"experimentWorkingDirectory {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"experimentWorkingDirectory {folder}: not writable")


def _check_port(port: int) -> int:
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: must be between 1 and 65535")
    with socket.socket() as probe:
        # As a server does: a port whose last user just left is free, one that is listened on not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = (
                "another program uses it" if error.errno == errno.EADDRINUSE else error.strerror
            )
            raise ConfigError(
                f"--port {port}: {reason}; leave --port out and a free one is taken"
            ) from None
    return port


def _notes(config: Any) -> list[str]:
    notes = []
    endless = config.max_trial_number is None and config.max_experiment_duration is None
    ending = ("gridsearch", "gconvgridsearch", "batch", "batchtuner", "nni_gconv.tuner.gridsearch")
    if endless and (config.tuner.name or config.tuner.class_name or "").lower() not in ending:
        notes.append("neither maxTrialNumber nor maxExperimentDuration: it runs until Ctrl-C")
    return notes


def as_json(config: Any) -> dict[str, Any]:
    """Return the configuration the way the manager takes it."""
    return json.loads(json.dumps(config.json()))
