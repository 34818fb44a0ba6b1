"""Machines by their names in ~/.ssh/config."""

from pathlib import Path

import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.remote import machines_of, way_to, with_ssh_config
from nni_gconv.remote.proxy import Proxy
from nni_gconv.remote.ssh_config import Way

CONFIG = """
Host box
  HostName 10.0.0.7
  Port 2200
  User ann
  IdentityFile ~/.ssh/box_key

Host far
  HostName 10.1.1.1
  Port 2022
  User eve
  ProxyJump box

Host deep
  ProxyJump box, ann@mid:2200,eve@last:22

Host odd
  HostName 10.2.2.2
  ProxyCommand nc -x %n:1 100%% %h %p %r

Host plain
  ProxyJump none

Host near
  ProxyJump near

Host cloud
  HostName 10.3.3.3
  HostKeyAlias cloud-key

Host own
  HostName 10.5.5.5
  UserKnownHostsFile ~/keys/%h "/srv/other hosts" %d/100%%

Host nowhere
  UserKnownHostsFile none

Host inner
  HostName 10.4.4.4
  HostKeyAlias inner-key
  ProxyJump box

Host *
  ServerAliveInterval 30
"""


def experiment(*machines, several=False):
    service = {"platform": "remote", "machineList": list(machines)}
    return {"trainingService": [service, {"platform": "local"}] if several else service}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    file = tmp_path / ".ssh" / "config"
    file.write_text(CONFIG)
    return file


@pytest.mark.parametrize("several", [False, True])
def test_what_is_missing_is_filled_in(config, several):
    done = with_ssh_config(experiment({"host": "box"}, several=several))
    service = done["trainingService"][0] if several else done["trainingService"]
    assert service["machineList"] == [
        {
            "host": "10.0.0.7",
            "port": 2200,
            "user": "ann",
            "sshKeyFile": str(config.parent / "box_key"),
        }
    ]


def test_what_is_given_stays(config):
    given = {"host": "box", "port": 22, "user": "bob", "password": "secret"}
    done = with_ssh_config(experiment(given))
    assert done["trainingService"]["machineList"] == [{**given, "host": "10.0.0.7"}]
    other = {"host": "192.168.0.1", "user": "me", "ssh_key_file": "/key"}
    assert with_ssh_config(experiment(other)) == experiment(other)
    local = {"trainingService": {"platform": "local"}}
    assert with_ssh_config(local) == local


def test_without_a_file_nothing_changes(tmp_path):
    given = experiment({"host": "box"})
    assert with_ssh_config(given, tmp_path / "none") == given


def machine_of(**entry):
    (machine,) = machines_of({"machineList": [{"user": "me", "port": 22, **entry}]})
    return machine


def test_a_machine_behind_another_keeps_its_name(config):
    (entry,) = with_ssh_config(experiment({"host": "far"}))["trainingService"]["machineList"]
    assert entry == {"host": "far", "port": 2022, "user": "eve"}
    way = way_to(machine_of(**entry))
    assert (way.host, way.behind) == ("10.1.1.1", "box")
    head, tail = way.command.split(f" -F {config} ")  # HOME is not the account's
    assert head == "ssh -o BatchMode=yes -o ConnectTimeout=20"
    assert tail == "-W '[10.1.1.1]:2022' ssh://box"


def test_a_way_by_several_machines(config):
    command = way_to(machine_of(host="deep")).command
    assert command.endswith("-J box,ann@mid:2200 -W '[deep]:22' ssh://eve@last:22")


def test_a_way_by_a_command(config):
    way = way_to(machine_of(host="odd", port=2233, user="eve"))
    assert way == Way(
        "10.2.2.2", "nc -x odd:1 100% 10.2.2.2 2233 eve", "nc -x %n:1 100%% 10.2.2.2 2233 eve"
    )


def test_a_host_key_may_have_a_name_of_its_own(config):
    (entry,) = with_ssh_config(experiment({"host": "cloud"}))["trainingService"]["machineList"]
    assert entry == {"host": "cloud"}  # by which the alias is found again
    way = way_to(machine_of(**entry))
    assert way == Way("10.3.3.3", alias="cloud-key")
    assert way.known_name(2222) == "cloud-key"  # as ssh: without the port
    inner = way_to(machine_of(host="inner"))
    assert (inner.host, inner.behind, inner.alias) == ("10.4.4.4", "box", "inner-key")
    assert way_to(machine_of(host="box")).known_name(2222) == "[box]:2222"


def test_host_keys_may_be_in_files_of_their_own(config):
    (entry,) = with_ssh_config(experiment({"host": "own"}))["trainingService"]["machineList"]
    assert entry == {"host": "own"}  # by which the files are found again
    home = config.parents[1]
    files = home / "keys" / "10.5.5.5", Path("/srv/other hosts"), home / "100%"
    assert way_to(machine_of(**entry)) == Way("10.5.5.5", known_hosts=files)
    assert way_to(machine_of(host="nowhere")).known_hosts == ()


@pytest.mark.parametrize("host", ["box", "near", "plain", "10.0.0.7"])
def test_no_way_is_none(config, host):
    """Also of a jump host that its own line is for, and of a jump that is switched off."""
    assert way_to(machine_of(host=host)) == Way(host)


def test_without_a_file_the_way_is_straight(tmp_path):
    assert way_to(machine_of(host="far"), tmp_path / "none") == Way("far")


def test_what_a_command_says_last(capfd):
    proxy = Proxy("sh -c \"echo first >&2; echo 'second  line' >&2; exit 1\"")
    assert proxy.socket.recv(1) == b""
    assert proxy.last_words() == "second line"
    assert capfd.readouterr().err == ""


def test_a_command_ends_with_its_socket():
    proxy = Proxy("cat")
    proxy.close()
    proxy.close()
    assert proxy._process.returncode == 0


def test_what_is_no_configuration_is_said(config):
    config.write_text("Host a\n  ===\nthis\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        with_ssh_config(experiment({"host": "a"}))
