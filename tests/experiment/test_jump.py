"""A machine behind another one, with real SSH servers: ``ProxyJump`` and ``ProxyCommand``."""

import json
from pathlib import Path

import pytest

from nni_gconv.errors import NniGconvError
from nni_gconv.remote import RemoteError, connect, known_host_keys, machines_of, with_ssh_config

from .conftest import Workshop
from .machines import make_machines, quiet, trust

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_SECONDS = 300


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two machines of which one reaches the other; only the first is in no experiment file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_MACHINES", "loopback")
        made = make_machines(tmp_path_factory.mktemp("pair"), 2, FAKE_GPUS="1")
    yield made
    for machine in made:
        machine.close()


def write_config(home, pair, way="ProxyJump near"):
    near, far = pair
    trust(home, pair)
    (home / ".ssh/config").write_text(
        f"Host near\n HostName {near.host}\n Port {near.port}\n"
        f"Host far\n HostName {far.host}\n Port {far.port}\n {way}\n"
        f"Host *\n User {near.entry['user']}\n IdentityFile {near.key}\n"
        f" UserKnownHostsFile {home}/.ssh/known_hosts\n BatchMode yes\n"
    )


@pytest.fixture
def home(tmp_path, pair, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    write_config(tmp_path, pair)
    return tmp_path


def far_machine():
    data = with_ssh_config({"trainingService": {"platform": "remote", "machineList": [FAR]}})
    (machine,) = machines_of(data["trainingService"])
    return machine


FAR = {"host": "far"}


def logins(machine):
    return (machine.home.parent / f"{machine.home.name}.log").read_text().count("Accepted ")


@pytest.mark.parametrize("way", ["ProxyJump near", "ProxyCommand ssh -F {} -W [%h]:%p near"])
def test_a_login_goes_by_the_machine_in_between(home, pair, way):
    write_config(home, pair, way.format(home / ".ssh/config"))
    near, far = pair
    before = logins(near)
    with connect(far_machine()) as connection:
        assert connection.run("echo $HOME").out == str(far.home)
    assert logins(near) == before + 1
    assert list(known_host_keys(far_machine())) == ["ssh-ed25519"]


def test_the_far_machines_host_key_is_verified(home, pair):
    lines = (home / ".ssh/known_hosts").read_text().splitlines()
    (home / ".ssh/known_hosts").write_text(lines[0] + "\n")
    with pytest.raises(RemoteError, match=r"far:\d+: its host key is not known"):
        connect(far_machine())


@pytest.mark.parametrize("way", ["ProxyJump near", ""])
def test_a_host_key_is_known_by_its_alias(home, pair, way):
    write_config(home, pair, f"{way}\n HostKeyAlias its-own-name")
    with pytest.raises(RemoteError, match="its host key is not known"):
        connect(far_machine())
    near, far = (home / ".ssh/known_hosts").read_text().splitlines()
    (home / ".ssh/known_hosts").write_text(f"{near}\nits-own-name {far.partition(' ')[2]}\n")
    with connect(far_machine()) as connection:
        assert connection.run("echo $HOME").out == str(pair[1].home)
    assert list(known_host_keys(far_machine())) == ["ssh-ed25519"]
    (home / ".ssh/known_hosts").write_text(f"{near}\nits-own-name {near.partition(' ')[2]}\n")
    with pytest.raises(
        RemoteError, match=r"has changed.* ssh-keygen -f \S+known_hosts -R its-own-name"
    ):
        connect(far_machine())


def test_a_way_that_is_closed_says_why(home, pair):
    lines = (home / ".ssh/known_hosts").read_text().splitlines()
    (home / ".ssh/known_hosts").write_text(lines[1] + "\n")
    with pytest.raises(RemoteError, match=r"no way there behind 'near': Host key verif.* ssh -i"):
        connect(far_machine())
    write_config(home, pair, "ProxyCommand no-such-program %h")
    with pytest.raises(NniGconvError, match=r"behind 'no-such-program .*not found"):
        connect(far_machine())


def near_by_alias(home):
    """The first machine's host key is known by a name of its own, to ssh and to us."""
    file, keys = home / ".ssh/config", home / ".ssh/known_hosts"
    file.write_text(file.read_text().replace("Host near\n", "Host near\n HostKeyAlias its-name\n"))
    near, far = keys.read_text().splitlines()
    keys.write_text(f"its-name {near.partition(' ')[2]}\n{far}\n")


def write_experiment(workshop, pair):
    (workshop.folder / "code").mkdir()
    trial = workshop.folder / "stand_in_trial.py"
    trial.rename(workshop.folder / "code" / trial.name)
    hosts = ("far", "near")
    entries = [
        {"host": host, "pythonPath": str(machine.home / "bin")}
        for host, machine in zip(hosts, reversed(pair), strict=True)
    ]
    service = {"platform": "remote", "machineList": entries}
    return workshop.write(trialCodeDirectory="code", trainingService=service)


def test_an_experiment_runs_on_a_machine_behind_another(pair, tmp_path, warm):
    """NNI's own connection jumps, too; doctor, its fix and fetch go the same way.

    Another machine, by its name and with an alias of its host key, is reached straight.
    """
    workshop = Workshop(tmp_path / "workshop")
    write_config(workshop.home, pair)
    near_by_alias(workshop.home)
    workshop.env.pop("SSH_AUTH_SOCK", None)
    workshop.env = warm(workshop.env)
    file = str(write_experiment(workshop, pair))
    looked = workshop.run("doctor", file, timeout=_SECONDS)
    assert looked.code == 0, looked.out + looked.err
    fixed = workshop.run("doctor", file, "--fix", timeout=_SECONDS)
    # The pip there only leaves a mark (it is reached); or the package lacks nothing.
    assert "no way" not in fixed.out + fixed.err
    before = logins(pair[0])
    finished = workshop.run("create", file, "--json", timeout=600)
    assert finished.code == 0, finished.err
    rows = json.loads(finished.out)
    assert sorted(row["parameters"]["x"] for row in rows) == [1, 2, 3]
    workers = {Path(row["folder"]).parents[1].name for row in rows}
    assert workers == {"remote-worker1", "remote-worker2"}
    assert logins(pair[0]) >= before + 2  # ours and the manager's
    (experiment,) = workshop.experiments
    fetched = workshop.run("fetch", experiment.name, "--json", timeout=_SECONDS)
    assert fetched.code == 0, fetched.err
    left = quiet("ps", "-eo", "args").stdout.splitlines()
    assert [line for line in left if str(workshop.home / ".ssh/config") in line] == []
    assert (pair[1].experiments / experiment.name).is_dir()
