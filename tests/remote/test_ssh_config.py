"""Machines by their names in ~/.ssh/config."""

import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.remote import with_ssh_config

CONFIG = """
Host box
  HostName 10.0.0.7
  Port 2200
  User ann
  IdentityFile ~/.ssh/box_key

Host far
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


def test_a_machine_behind_another_is_said(config):
    words = r"far is behind 'box'.*ssh -N -L 2222:localhost:22 far\), log in through"
    with pytest.raises(ConfigError, match=words):
        with_ssh_config(experiment({"host": "far"}))


def test_what_is_no_configuration_is_said(config):
    config.write_text("Host a\n  ===\nthis\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        with_ssh_config(experiment({"host": "a"}))
