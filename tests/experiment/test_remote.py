"""Machines elsewhere, with real SSH servers: logins, tunnels, files, whole experiments."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from nni_gconv._version import __version__
from nni_gconv.experiment import experiment_file, fix_machines
from nni_gconv.experiment.checks.checkup import check_experiment
from nni_gconv.installation import write_wheel
from nni_gconv.remote import (
    MachineLinks,
    RemoteError,
    bring,
    connect,
    fetch_machine,
    known_host_keys,
    machines_of,
)
from nni_gconv.remote.probe import probe

from .conftest import Workshop
from .machines import make_machines, quiet, trust

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_SECONDS = 300  # a loaded machine may take minutes where an idle one takes seconds


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Two machines with an SSH server and a GPU each (a driver of our own says so)."""
    made = make_machines(tmp_path_factory.mktemp("machines"), 2, FAKE_GPUS="1")
    yield made
    for machine in made:
        machine.close()


@pytest.fixture
def home(tmp_path, machines, monkeypatch):
    """A home here that knows the machines' host keys."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    trust(tmp_path, machines)
    return tmp_path


@pytest.fixture
def far(tmp_path, machines, warm):
    """A workshop whose trials' code is in a folder of its own, as it goes to the machines."""
    workshop = Workshop(tmp_path / "workshop")
    trust(workshop.home, machines)
    (workshop.folder / "code").mkdir()
    trial = workshop.folder / "stand_in_trial.py"
    trial.rename(workshop.folder / "code" / trial.name)
    workshop.env = warm(workshop.env, trial.name)
    return workshop


def machine_of(entry):
    (machine,) = machines_of({"machineList": [entry]})
    return machine


def wait_until(true, what):
    deadline = time.monotonic() + _SECONDS
    while not true():
        assert time.monotonic() < deadline, f"not in {_SECONDS} s: {what}"
        time.sleep(0.2)


def of_experiment(folder):
    """Processes of an experiment that are alive on any of the machines."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            keeper = any(folder.name in word for word in process.cmdline())
            ours = process.environ().get("NNI_EXP_ID") == folder.name
            if "TEST_MACHINE" in process.environ() and (keeper or ours):
                found.append(process)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


# Logging in


def test_a_login_runs_commands_as_nni_does(home, machines):
    with connect(machine_of(machines[0].entry)) as connection:
        assert connection.run("echo $HOME").out == str(machines[0].home)
        assert connection.run("command -v nni-gconv").out == f"{machines[0].home}/bin/nni-gconv"
        assert connection.python("import sys; print(sys.argv[1])", "a b").out == "a b"
        assert connection.run("exit 3").code == 3


def test_an_unknown_host_key_is_refused(home, machines):
    (home / ".ssh/known_hosts").unlink()
    with pytest.raises(RemoteError, match=r"host key is not known \(ssh-ed25519 SHA256:.*ssh -i"):
        connect(machine_of(machines[0].entry))


def test_a_changed_host_key_is_refused(home, machines):
    one, other = (home / ".ssh/known_hosts").read_text().splitlines()
    name, key = one.split(" ", 1)[0], other.split(" ", 1)[1]
    (home / ".ssh/known_hosts").write_text(f"{name} {key}\n")
    with pytest.raises(RemoteError, match=r"host key has changed.*ssh-keygen -R"):
        connect(machine_of(machines[0].entry))


def test_host_keys_are_looked_up_where_ssh_looks(home, machines):
    """In a file that the configuration names, by us and for NNI's manager; nowhere else then."""
    machine = machine_of(machines[0].entry)
    usual, own, config = (home / ".ssh" / name for name in ("known_hosts", "own", "config"))
    known = known_host_keys(machine)
    usual.rename(own)
    config.write_text(f"Host *\n UserKnownHostsFile {own}\n")
    assert known
    assert known_host_keys(machine) == known
    connect(machine).close()
    own.rename(usual)
    own.write_text("")
    with pytest.raises(RemoteError, match="host key is not known"):
        connect(machine)
    one, other = usual.read_text().splitlines()
    own.write_text(f"{one.split(' ', 1)[0]} {other.split(' ', 1)[1]}\n")
    with pytest.raises(RemoteError, match=rf"ssh-keygen -f {own} -R '\["):
        connect(machine)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"sshKeyFile": "/no/key"}, "sshKeyFile", "no key file /no/key"),
        ({"sshKeyFile": "other"}, "sshKeyFile", "login refused with the key"),
        ({"sshKeyFile": "locked"}, "sshKeyFile", "has a passphrase: give it to an agent"),
        ({"sshKeyFile": "broken"}, "sshKeyFile", "is no private key"),
        ({"port": 1}, "port", "nobody listens on port 1"),
        ({"host": "no-such-host.invalid"}, "host", "no machine of that name"),
    ],
)
def test_a_login_that_fails_is_one_line(home, machines, changes, key, words):
    for name, phrase in (("other", ""), ("locked", "secret")):
        os.system(f"ssh-keygen -q -t ed25519 -N '{phrase}' -f {home}/{name}")
    (home / "broken").write_text("no key\n")
    if "/" not in changes.get("sshKeyFile", "/"):
        changes = {"sshKeyFile": str(home / changes["sshKeyFile"])}
    machine = machine_of({**machines[0].entry, **changes})
    with pytest.raises(RemoteError, match=words) as caught:
        connect(machine)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_a_key_with_a_passphrase_opens_with_the_passphrase(home, machines):
    locked = home / "locked"
    shutil.copy(machines[0].key, locked)
    locked.chmod(0o600)
    assert os.system(f"ssh-keygen -q -p -P '' -N secret -f {locked} >/dev/null") == 0
    entry = {**machines[0].entry, "sshKeyFile": str(locked), "sshPassphrase": "secret"}
    connect(machine_of(entry)).close()


NNI_LOGIN = """
const fs = require('fs');
const {Client} = require('ssh2');
const client = new Client();
const [host, port, username, key] = process.argv.slice(1);
client.on('ready', () => client.exec('echo -m pip install nni --upgrade', (error, stream) => {
  stream.on('data', data => console.log(String(data).trim()));
  stream.on('close', () => client.end());
}));
client.on('error', error => console.log('refused: ' + error.message));
client.connect({host, port: Number(port), username, privateKey: fs.readFileSync(key)});
"""


@pytest.mark.parametrize("known", ["right", "wrong", "none"])
def test_logins_of_nni_itself_verify_the_host_key_and_leave_pip_alone(home, machines, known):
    import nni_node

    import nni_gconv

    entry = machines[0].entry
    keys = known_host_keys(machine_of(entry))
    assert list(keys) == ["ssh-ed25519"]
    if known != "right":
        keys = {"ssh-ed25519": "0" * 64} if known == "wrong" else {}
    ways = {f"{entry['host']}:{entry['port']}": {"keys": keys, "command": None}}
    (home / "ways.json").write_text(json.dumps(ways))
    folder = Path(nni_node.__path__[0])
    shim = Path(nni_gconv.__file__).parent / "_shims" / "remote.js"
    login = [entry["host"], str(entry["port"]), entry["user"], entry["sshKeyFile"]]
    said = quiet(
        str(folder / "node"), "--require", str(shim), "-e", NNI_LOGIN, *login,
        env={**os.environ, "NNI_GCONV_WAYS": str(home / "ways.json")}, cwd=folder,
    ).stdout  # fmt: skip
    if known == "right":
        assert said.strip() == "-c import nni"
    else:
        assert said.startswith("refused: ")


# Files


def test_files_come_whole_once_and_go_on_where_they_stopped(home, machines, tmp_path):
    there = machines[0].experiments / "fetchme1/environments/remote-worker1/trials/abcde"
    (there / "tensorboard").mkdir(parents=True)
    data = os.urandom(3_000_000)
    (there / "compact.safetensors").write_bytes(data)
    (there / "result.json").write_text("{}")
    (there / "tensorboard/events.out.tfevents.1").write_text("event")
    (there / "checkpoint.pt").write_bytes(b"x" * 1000)
    (there / ".lock").touch()
    (there / "passwords").symlink_to("/etc/passwd")
    folder = tmp_path / "fetchme1"
    here = folder / "environments/remote-worker1/trials/abcde"
    # A transfer that was cut off after two million bytes; the first is changed to be recognised.
    changed = int((there / "compact.safetensors").stat().st_mtime)
    here.mkdir(parents=True)
    part = here / f".compact.safetensors.{changed}-{len(data)}.part"
    part.write_bytes(bytes([data[0] ^ 1]) + data[1:2_000_000])
    with connect(machine_of(machines[0].entry)) as connection:
        first = fetch_machine(connection, "fetchme1", folder)
        assert first.files == 3
        assert first.trials == {"abcde"}
        assert [Path(name).name for name in first.skipped] == ["checkpoint.pt"]
        got = (here / "compact.safetensors").read_bytes()
        assert got[1:] == data[1:]
        assert got[0] != data[0]  # it went on, and did not begin again
        assert sorted(entry.name for entry in here.iterdir()) == [
            "compact.safetensors", "result.json", "tensorboard",
        ]  # fmt: skip
        # The board that the web UI's button opens.
        assert (folder / "trials/abcde/output/tensorboard/events.out.tfevents.1").is_file()
        assert fetch_machine(connection, "fetchme1", folder).files == 0
        (there / "result.json").write_text('{"new": 1}')
        assert fetch_machine(connection, "fetchme1", folder).files == 1
        assert fetch_machine(connection, "fetchme1", folder, everything=True).files == 1
    shutil.rmtree(machines[0].experiments / "fetchme1")


# The check beforehand


RECIPE = "name: x\nmodel: {name: resnet8}\ndata: {name: digits}\ntrain: {epochs: 1}\n"


@pytest.fixture
def check(home, machines):
    """A function that checks an experiment on the machines, with one key changed."""
    code = home / "code"
    code.mkdir()
    (code / "recipe.yml").write_text(RECIPE)

    def check(changes=(), **top):
        entries = [machine.entry for machine in machines]
        entries[1] |= dict(changes)
        data = yaml.safe_load(experiment_file("remote").read_text())
        data |= {"trialCodeDirectory": "code", "searchSpaceFile": None, "searchSpace": {}}
        data["searchSpace"] = {"x": {"_type": "choice", "_value": [1]}}
        data["trainingService"]["machineList"] = entries
        file = home / "experiment.yml"
        file.write_text(yaml.safe_dump({k: v for k, v in {**data, **top}.items() if v is not None}))
        return file, check_experiment(file)

    return check


def problems(found):
    return [finding for finding in found if finding.level != "ok"]


def test_the_check_finds_nothing_wrong_where_nothing_is(check):
    _, found = check()
    assert problems(found) == []
    said = " ".join(finding.text for finding in found)
    for words in ("host key", "nni 3.0", "GiB free", "a tunnel back", "1 GPUs", "room for"):
        assert words in said


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"pythonPath": "/no/venv/bin"}, "pythonPath", "there is no folder /no/venv/bin"),
        ({"pythonPath": "/etc"}, "pythonPath", "there is no python in /etc"),
        ({"pythonPath": "/bin/sh"}, "pythonPath", "is a file; write the folder"),
        ({"port": 1}, "port", "nobody listens on port 1"),
    ],
)
def test_the_check_names_the_line_to_mend(check, changes, key, words):
    from nni_gconv.remote.yaml_lines import line_of

    file, found = check(changes)
    (problem,) = problems(found)
    assert problem.level == "error"
    assert words in problem.text
    line = line_of(file, problem.place)
    written = file.read_text().splitlines()[line - 1]
    assert written.strip().removeprefix("- ") == f"{key}: {changes[key]}"


def test_the_check_compares_versions_and_programs(check, home):
    bare = home / "bare"
    bare.mkdir()
    (bare / "python").write_text('#!/bin/sh\nexec env -u PYTHONPATH python3 -S "$@"\n')
    (bare / "python").chmod(0o755)
    _, found = check({"pythonPath": str(bare)})
    said = [finding.text for finding in problems(found)]
    assert any(text.startswith("nni is not installed in") for text in said)
    assert any("pip install 'nni==3.0'" in text for text in said)
    assert any(text.startswith("nni-gconv is not installed in") for text in said)
    (line,) = [text for text in said if "pip install" in text]  # one for all that is missing
    assert line.count("==") > 2
    assert line.endswith("; or from here: nni-gconv doctor EXPERIMENT.yml --fix")
    assert any("no program 'nni-gconv'" in text for text in said)


def test_the_check_counts_the_code_and_names_the_largest(check, home):
    with (home / "code/weights.bin").open("wb") as file:
        file.truncate(400 * 1024**2)
    _, found = check()
    (problem,) = problems(found)
    assert problem.level == "error"
    assert "400.0 MiB of code" in problem.text
    assert "weights.bin (400.0 MiB)" in problem.text
    assert ".nniignore" in problem.text
    (home / "code/.nniignore").write_text("*.bin\n")
    assert problems(check()[1]) == []


def test_the_check_compares_gpus_with_trials_at_a_time(check, home):
    (problem,) = problems(check(trialConcurrency=3)[1])
    assert problem.place == ("trialConcurrency",)
    assert "others wait" in problem.text
    (home / "code/recipe.yml").write_text(f"{RECIPE}gpus: 2\n")
    assert {"1 GPUs, but each trial takes 2"} == {p.text for p in problems(check()[1])}


def test_doctor_prints_json_and_fails_where_something_is_wrong(check, home, warm):
    workshop = Workshop(home / "workshop")
    workshop.env = warm(workshop.env)
    shutil.copytree(home / ".ssh", workshop.home / ".ssh")
    file, _ = check({"pythonPath": "/etc"})
    finished = workshop.run("doctor", str(file), "--json", timeout=_SECONDS)
    assert finished.code == 2
    (row,) = [row for row in json.loads(finished.out) if row["level"] == "error"]
    assert "there is no python in /etc" in row["text"]
    line = file.read_text().splitlines()[row["line"] - 1]
    assert "pythonPath: /etc" in line
    refused = workshop.run("create", str(file), timeout=_SECONDS)
    assert refused.code == 2
    assert f"experiment.yml:{row['line']}: " in refused.err
    assert refused.err.count("\n") == 1


def test_the_package_is_brought_to_a_machine_that_lacks_it(home, machines):
    """The pip there installs into a folder of its own, without what it would download."""
    machine, site = machines[0], home / "site"
    script = machine.home / "bin/python"
    kept = script.read_text()
    lines = kept.splitlines()
    pip = f"exec {sys.executable} -m pip install --no-deps --target {site}"
    lines[1] = f'case "$*" in *"pip install"*) {pip} "$4";; esac'
    script.write_text("\n".join(lines) + "\n")
    try:
        with connect(machine_of(machine.entry)) as connection:
            wheel = write_wheel(home / "dist")
            assert bring(connection, wheel, {"nni-gconv": "9.9"}) == [wheel.name]
            there = probe(connection, ("nni-gconv",)).versions["nni-gconv"]
            assert bring(connection, wheel, {"nni-gconv": there}) == []
    finally:
        script.write_text(kept)
    code = "import nni_gconv; print(nni_gconv.__file__, nni_gconv.__version__)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = quiet(sys.executable, "-c", code, env=environment, cwd=home)
    assert done.stdout.split() == [str(site / "nni_gconv/__init__.py"), __version__]
    assert (site / "nni_gconv/_files/experiments/quickstart/experiment.yml").is_file()


def test_a_failed_pip_is_one_line(check, home, machines):
    file, _ = check()
    lines = list(fix_machines(file))
    assert len(lines) == 2
    lacking = [line for line in lines if "lacks nothing" not in line]
    assert all("pip install failed" in line and "\n" not in line for line in lacking)
    for machine in machines:
        (machine.home / "pip_was_called").unlink(missing_ok=True)


# Whole experiments


@pytest.fixture(scope="module")
def done(machines, tmp_path_factory, warm):
    """``experiments/remote`` on the two machines, with fewer epochs; several tests look at it."""
    workshop = Workshop(tmp_path_factory.mktemp("done"))
    workshop.env = warm(workshop.env)
    trust(workshop.home, machines)
    folder = shutil.copytree(experiment_file("remote").parent, workshop.folder / "remote")
    data = yaml.safe_load((folder / "experiment.yml").read_text())
    data["trainingService"]["machineList"] = [machine.entry for machine in machines]
    (folder / "experiment.yml").write_text(yaml.safe_dump(data))
    recipe = yaml.safe_load((folder / "recipe.yml").read_text())
    recipe["train"]["epochs"], recipe["finetune"]["epochs"] = 2, 1
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    return workshop, workshop.run("create", str(folder / "experiment.yml"), "--json", timeout=600)


def test_the_remote_experiment_ends_and_brings_everything_home(done, machines):
    workshop, finished = done
    assert finished.code == 0, finished.err
    assert "4 trials succeeded" in finished.err
    rows = json.loads(finished.out)
    assert {row["status"] for row in rows} == {"succeeded"}
    (experiment,) = workshop.experiments
    environments = {Path(row["folder"]).parents[1].name for row in rows}
    assert environments == {"remote-worker1", "remote-worker2"}
    for row in rows:
        folder = Path(row["folder"])
        assert experiment in folder.parents
        assert row["macs_ratio"] <= row["budget"]["macs"]
        for name in ("result.json", "compact.safetensors", "metrics.jsonl", "trial.stderr"):
            assert (folder / name).is_file(), name
        assert list(experiment.glob(f"trials/{folder.name}/output/tensorboard/events.*"))
    assert (experiment / "report" / "trials.csv").is_file()


def test_each_trial_took_the_gpu_of_its_machine(done):
    _, finished = done
    for row in json.loads(finished.out):
        logs = [Path(row["folder"], name) for name in ("trial.stderr", "trial.log")]
        assert any("GPU 0 of 0 on" in log.read_text() for log in logs if log.is_file())


def test_nni_does_not_change_the_machines_packages(done, machines):
    assert done[1].code == 0
    assert not [machine.host for machine in machines if (machine.home / "pip_was_called").exists()]


def test_nothing_is_left_running_on_the_machines(done):
    (experiment,) = done[0].experiments
    assert of_experiment(experiment) == []


def test_what_came_home_can_be_fetched_again_at_no_cost(done):
    workshop, _ = done
    (experiment,) = workshop.experiments
    again = workshop.run("fetch", experiment.name, "--json", timeout=_SECONDS)
    assert again.code == 0, again.err
    assert json.loads(again.out)["files"] == 0
    assert len(json.loads(again.out)["trials"]) == 4


def test_a_machine_that_dies_takes_only_its_trial_along_and_is_found_again(far, machines):
    space = {"x": {"_type": "choice", "_value": [1, 2, "sleep", "wait", "wait too", 3, 4]}}
    file = far.write(
        searchSpace=space,
        trialCodeDirectory="code",
        trainingService={"platform": "remote", "machineList": [m.entry for m in machines]},
    )
    process = far.start("create", str(file), "--json")
    victim = None
    try:
        asleep = "nni-experiments/*/environments/*/trials/*/sleeping"
        wait_until(lambda: any(list(m.home.glob(asleep)) for m in machines), "a trial asleep")
        (victim,) = [machine for machine in machines if list(machine.home.glob(asleep))]
        other = next(machine for machine in machines if machine is not victim)
        # What ended before on the machine is home already, while the experiment runs.
        wait_until(lambda: len(fetched(far, 1)) == 1, "the first result")
        (experiment,) = far.experiments
        lost = next(victim.home.glob(asleep)).parent.name
        victim.kill()
        # Two trials hold the experiment on the other machine until this one is back.
        waiting = "nni-experiments/*/environments/*/trials/*/waiting"
        wait_until(lambda: len(list(other.home.glob(waiting))) == 2, "two trials that wait")
        victim.start()
        log = experiment / "log" / "nnimanager.log"
        wait_until(lambda: f"{victim.host} has been recovered" in log.read_text(), "it is back")
        (other.home / "go").touch()
    except BaseException:
        process.terminate()
        raise
    finally:
        finished = far.finish(process, 300)
        if victim is not None and victim.process is None:
            victim.start()
    assert finished.code == 3, finished.err
    rows = {row["parameters"]["x"]: row for row in json.loads(finished.out)}
    assert rows["sleep"]["status"] == "killed"
    assert rows["sleep"]["trial"] == lost
    well = {x: row for x, row in rows.items() if x != "sleep"}
    assert len(well) == 6
    assert {row["status"] for row in well.values()} == {"succeeded"}
    assert all((Path(row["folder"]) / "result.json").is_file() for row in well.values())
    # Of the last two, one ran on the machine that is back, under a new name of NNI's.
    assert list(experiment.glob("environments/remote-worker[3-9]*/trials/*/result.json"))
    assert f"lost {machine_of(victim.entry).label}" in finished.err
    assert 'was lost while it ran there; its parameters were {"x": "sleep"}' in finished.err
    assert of_experiment(experiment) == []
    # The ended ones of the dead machine are still ended for NNI.
    with contextlib.closing(sqlite3.connect(experiment / "db" / "nni.sqlite")) as connection:
        events = connection.execute("select trialJobId, event from TrialJobEvent").fetchall()
    cancelled = {trial for trial, event in events if event == "USER_CANCELED"}
    assert cancelled == {lost}
    # What the lost trial left came home too.
    assert list(experiment.glob(f"environments/*/trials/{lost}/sleeping"))


def fetched(workshop, x):
    results = (workshop.home / "nni-experiments").glob("[!_]*/environments/*/trials/*/result.json")
    return [file for file in results if json.loads(file.read_text())["x"] == x]


@pytest.fixture
def agent(far, machines):
    """An SSH agent that holds the machines' key; the file of the key is locked by a passphrase."""
    locked = far.folder / "locked"
    shutil.copy(machines[0].key, locked)
    locked.chmod(0o600)
    words = subprocess.run(["ssh-agent", "-s"], check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"(SSH_\w+)=([^;]+);", words))
    far.env["SSH_AUTH_SOCK"] = found["SSH_AUTH_SOCK"]
    try:
        quiet("ssh-add", str(locked), env=far.env)
        quiet("ssh-keygen", "-p", "-P", "", "-N", "secret", "-f", str(locked))
        yield locked
    finally:
        os.kill(int(found["SSH_AGENT_PID"]), signal.SIGTERM)


def test_hybrid_runs_here_and_there_and_the_agent_opens_the_key(far, machines, agent):
    entry = {**machines[0].entry, "sshKeyFile": str(agent)}
    file = far.write(
        trialCodeDirectory="code",
        trainingService=[
            {"platform": "local"},
            {"platform": "remote", "machineList": [entry]},
        ],
    )
    finished = far.run("create", str(file), "--json", timeout=600)
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)
    assert sorted(row["parameters"]["x"] for row in rows) == [1, 2, 3]
    assert {Path(row["folder"]).parents[1].name for row in rows} == {"local-env", "remote-worker1"}
    assert of_experiment(far.experiments[0]) == []


def test_a_lost_machine_is_noticed_and_found_again(home, machines):
    machine = machine_of(machines[1].entry)
    with MachineLinks([machine]) as links:
        assert links.lost() == []
        machines[1].kill()
        wait_until(links.lost, "the loss is noticed")
        assert links.all_lost_for > 0
        assert "lost " + machine.label in links.news()[0]
        machines[1].start()
        wait_until(lambda: not links.lost(), "it is found again")
        assert links.news() == [f"{machine.label} answers again"]
