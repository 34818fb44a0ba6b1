"""``Include`` in ~/.ssh/config: what our reading finds is what ssh itself says."""

import shutil
import subprocess

import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.remote.ssh_config import _read
from nni_gconv.remote.ssh_include import read_with_includes

FILES = {
    "config": """
Include HERE/conf.d/*.conf "HERE/with space" HERE/missing
Port 2201
Host box
  User ann
  Include HERE/inside
  HostName 10.0.0.1
Match user ann
  HostKeyAlias of-ann
Host *
  User last
""",
    "conf.d/10.conf": "Host near far\n  HostName %h.example.org\nHost !far *\n  ForwardAgent yes\n",
    "conf.d/20.conf": "ConnectTimeout=7\nHost near\n Include = HERE/deeper\n Port 2220\n",
    "with space": "Match all\n  ServerAliveInterval 30\n",
    "inside": "Compression yes\nHost other box\n  Port 9\nHost far\n  Port 10\n",
    "deeper": "  ProxyJump box\n",
}
KEYS = (
    "hostname", "port", "user", "proxyjump", "hostkeyalias", "forwardagent", "connecttimeout",
    "compression", "serveraliveinterval",
)  # fmt: skip
DEFAULTS = {
    "port": "22", "forwardagent": "no", "connecttimeout": "none", "compression": "no",
    "serveraliveinterval": "0",
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        # A relative path starts from ~/.ssh for ssh, and from the configuration's folder for us.
        (tmp_path / name).write_text(text.replace("HERE", str(tmp_path)))
    return tmp_path / "config"


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh on this machine")
@pytest.mark.parametrize("host", ["box", "near", "far", "other", "elsewhere"])
def test_every_host_is_read_as_ssh_reads_it(config, host):
    said = subprocess.run(
        ["ssh", "-G", "-F", str(config), host], capture_output=True, text=True, check=True
    ).stdout
    theirs = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    ours = _read(config).lookup(host)
    assert {k: ours.get(k, DEFAULTS.get(k)) for k in KEYS} == {k: theirs.get(k) for k in KEYS}


def test_a_relative_path_starts_from_the_configurations_folder(tmp_path):
    (tmp_path / "config").write_text("Include more\n")
    (tmp_path / "more").write_text("Host box\n  Port 2200\n")
    assert _read(tmp_path / "config").lookup("box")["port"] == "2200"


def test_files_that_include_each_other_are_refused(tmp_path):
    (tmp_path / "config").write_text("Include config\n")
    with pytest.raises(ConfigError, match="config: included more than 16 deep"):
        read_with_includes(tmp_path / "config")


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "config").write_text('Include "more\n')
    with pytest.raises(ConfigError, match="config: cannot be read: No closing quotation"):
        _read(tmp_path / "config")
