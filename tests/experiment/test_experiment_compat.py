"""NNI's rough edges around an experiment, each alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nni_node
import pytest

from nni_gconv.compat import (
    dispatcher_exception,
    launch_path,
    link_tensorboard,
    write_launch_files,
)

NODE = str(Path(nni_node.__path__[0]) / "node")


def test_tensorboard_is_kept_on_loopback(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    write_launch_files(tmp_path)
    # As NNI starts it: one string that a shell splits.
    line = f"{tmp_path}/bin/tensorboard --bind_all --logdir_spec=1-a:/x,2-b:/y --port=6006"
    said = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
    assert said.split() == [
        f"{tmp_path}/tensorboard_guard.py",
        "--host",
        "127.0.0.1",
        "--logdir_spec=1-a:/x,2-b:/y",
        "--port=6006",
    ]


def test_our_command_is_that_of_this_python(tmp_path, monkeypatch):
    write_launch_files(tmp_path)
    path = launch_path(tmp_path)
    found = subprocess.run(
        ["/bin/bash", "-c", "nni-gconv --version; command -v python"],
        env={"PATH": path},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found[0] == "nni-gconv"
    assert found[-1] == str(Path(sys.executable).parent / "python")


@pytest.mark.parametrize(
    ("call", "address"),
    [
        ("listen(0)", "127.0.0.1"),
        ("listen('0')", "127.0.0.1"),
        ("listen()", "127.0.0.1"),
        ("listen(() => {})", "127.0.0.1"),
        ("listen(0, () => {})", "127.0.0.1"),
        ("listen(0, '0.0.0.0')", "127.0.0.1"),
        ("listen(0, '127.0.0.2')", "127.0.0.2"),
        ("listen({port: 0})", "127.0.0.1"),
        ("listen({port: 0, host: '::'})", "127.0.0.1"),
        ("listen(0, 5)", "127.0.0.1"),
    ],
)
def test_every_way_to_listen_is_on_loopback(tmp_path, call, address):
    write_launch_files(tmp_path)
    script = (
        "const s = require('http').createServer();"
        "s.on('listening', () => { console.log(JSON.stringify(s.address())); s.close(); });"
        f"s.{call};"
    )
    said = subprocess.run(
        [NODE, "--require", str(tmp_path / "bind.js"), "-e", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert json.loads(said)["address"] == address


def test_a_unix_socket_is_left_alone(tmp_path):
    write_launch_files(tmp_path)
    socket = tmp_path / "s"
    script = (
        "const s = require('net').createServer();"
        f"s.listen('{socket}', () => {{ console.log(s.address()); s.close(); }});"
    )
    said = subprocess.run(
        [NODE, "--require", str(tmp_path / "bind.js"), "-e", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert said.strip() == str(socket)


def record(level, logger, text):
    return f"[2024-01-01 00:00:00] {level} ({logger}/MainThread) {text}\n"


TRACEBACK = (
    "Traceback (most recent call last):\n  File \"a.py\", line 1, in f\n    x\nKeyError: 'trial'\n"
)


@pytest.mark.parametrize("logger", ["nni.runtime.msg_dispatcher_base", "nni.main"])
def test_an_exception_of_the_dispatcher_is_found(logger):
    log = record("INFO", logger, "started") + record("ERROR", logger, "'trial'") + TRACEBACK
    assert dispatcher_exception(log) == "KeyError: 'trial' (File \"a.py\", line 1, in f)"


def test_complaints_are_no_exceptions():
    log = record("ERROR", "nni.common.hpo_utils.validation", 'search space "x" is odd')
    log += record("ERROR", "nni.tuner.my", "caught it myself") + TRACEBACK
    assert dispatcher_exception(log) is None


class TestLinkTensorboard:
    @pytest.fixture
    def output(self, tmp_path):
        output = tmp_path / "exp" / "environments" / "local-env" / "trials" / "aB3de"
        output.mkdir(parents=True)
        return output

    def test_what_a_trial_writes_appears_where_nni_looks(self, output):
        link = link_tensorboard(output)
        (output / "tensorboard" / "events").write_text("x")
        assert link == output.parents[3] / "trials" / "aB3de" / "output" / "tensorboard"
        assert (link / "events").read_text() == "x"
        assert link_tensorboard(output) == link  # a resumed trial does it again

    def test_the_empty_folder_of_an_early_button_is_replaced(self, output):
        early = output.parents[3] / "trials" / "aB3de" / "output" / "tensorboard"
        early.mkdir(parents=True)
        assert link_tensorboard(output) == early
        assert early.is_symlink()

    def test_what_somebody_wrote_stays(self, output):
        early = output.parents[3] / "trials" / "aB3de" / "output" / "tensorboard"
        early.mkdir(parents=True)
        (early / "mine").touch()
        assert link_tensorboard(output) is None
        assert (early / "mine").exists()

    def test_a_run_without_nni_has_no_button(self, tmp_path):
        assert link_tensorboard(tmp_path / "run") is None
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loaded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_how_long_a_tuner_may_take_to_come_up_is_ours_to_say(tmp_path, loaded):
    write_launch_files(tmp_path)
    # NNI's own server for the tuner, with nothing of a web server behind it.
    script = """
        require('common/globals');
        require('common/globals/unittest').resetGlobals();
        const rest = {urlJoin: (...parts) => parts.join('/'), registerWebSocketHandler() {}};
        require('common/globals').default.rest = rest;
        const {getTunerServer} = require('core/tuner_command_channel');
        getTunerServer().init().catch(error => { console.log(error.message); process.exit(0); });
    """
    shim = ["--require", str(tmp_path / "patience.js")] if loaded else []
    environment = {
        **os.environ, "NODE_PATH": nni_node.__path__[0], "NNI_GCONV_TUNER_SECONDS": "1",
    }  # fmt: skip
    said = subprocess.run(
        [NODE, *shim, "-e", script],
        env=environment, capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    assert f"did not connect in {1 if loaded else 10} seconds" in said
