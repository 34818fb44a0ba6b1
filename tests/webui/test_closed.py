"""A web page of another origin, and one whose name was bound to 127.0.0.1, against a real manager.

What they try is what starts a trial where nobody looks at Host and Origin: a WebSocket to /tuner,
and posts to /api/v1/nni/trial-jobs. A program of the user's own does the same at the end.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from nni_gconv.experiment import preflight, start
from nni_gconv.experiment.resume import resume_plan
from nni_gconv.experiment.watch import watch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRIAL = """
import nni, pathlib, sys
given = nni.get_next_parameter()
with open(pathlib.Path(sys.argv[1]) / "started", "a") as file:
    file.write(f"{given}\\n")
nni.report_final_result(1.0)
"""
ATTACK = """
const port = %d, told = [];
const parameters = JSON.stringify({x: 99});
const command = JSON.stringify({type: 'TR', content: JSON.stringify(
  {parameter_id: 99, parameter_source: 'algorithm', parameters: {x: 99}})});
async function attack(done) {
  for (const host of ['127.0.0.1', 'localhost']) {
    for (const path of ['/tuner', '/platform/any']) {
      told.push(await new Promise(resolve => {
        const socket = new WebSocket(`ws://${host}:${port}${path}`);
        socket.onopen = () => { socket.send(command); resolve(`${path} open`); };
        socket.onerror = () => resolve(`${path} refused`);
      }));
    }
    const api = `http://${host}:${port}/api/v1/nni/trial-jobs`;
    const headers = {'Content-Type': 'application/json'};
    for (const asked of [
      {method: 'POST', body: parameters, headers},
      {method: 'POST', body: parameters, mode: 'no-cors', headers: {'Content-Type': 'text/plain'}},
      {mode: 'no-cors'},
    ]) {
      told.push(await fetch(api, asked).then(
        answer => `answer ${answer.status}`, error => 'refused'));
    }
  }
  done(told);
}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, warm):
    """An experiment that has made its one trial and could make another, stopped once, resumed."""
    folder = tmp_path_factory.mktemp("closed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("NNI_CONFIG_DIR", str(folder / "config"))
        for key, value in warm({**os.environ}, "trial.py").items():
            patch.setenv(key, value)
        (folder / "trial.py").write_text(TRIAL)
        content = {
            "trialCommand": f"python trial.py {folder}",
            "trialCodeDirectory": ".",
            "trialConcurrency": 1,
            "maxTrialNumber": 1,
            "searchSpace": {"x": {"_type": "choice", "_value": [1]}},
            "tuner": {"name": "Random"},
            "trainingService": {"platform": "local"},
        }
        (folder / "experiment.yml").write_text(yaml.safe_dump(content))
        first = start(preflight(folder / "experiment.yml"))
        assert watch(first).ok
        refuses(first.client.port)
        first.stop()
        second = start(resume_plan(first.folder, max_trials=1))
        try:
            assert watch(second).ok
            yield second
            # That the attack is one: without Origin, from a program of the user's, it works.
            more = {"params": {"maxTrialNumber": 3}}
            second.client.request("PUT", "/experiment?update_type=MAX_TRIAL_NUM", more)
            second.client.request("POST", "/trial-jobs", {"x": 7})
            deadline = time.monotonic() + 120
            while "{'x': 7}" not in started(second) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert "{'x': 7}" in started(second)
        finally:
            second.stop()


def started(experiment):
    """Return what the trials noted that ever began."""
    return (experiment.folder.parents[1] / "started").read_text().splitlines()


def said(port, head, body=b""):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        return int(connection.recv(4096).split()[1])


def refuses(port):
    """Assert that raw requests of other origins are refused."""
    key = base64.b64encode(bytes(16)).decode()
    body = b'{"x": 99}'
    post = (f"Content-Length: {len(body)}", "Content-Type: application/json")
    sockets = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
               f"Sec-WebSocket-Key: {key}")  # fmt: skip
    own, other = f"Host: 127.0.0.1:{port}", f"Host: rebind.example:{port}"
    for path in ("/tuner", "/platform/x"):
        for lines in ((own, "Origin: http://evil.example"), (other,)):
            assert said(port, [f"GET {path} HTTP/1.1", *lines, *sockets]) == 403
    for lines in ((own, "Origin: http://evil.example"), (other, f"Origin: http://{other[6:]}")):
        assert said(port, ["POST /api/v1/nni/trial-jobs HTTP/1.1", *lines, *post], body) == 403
    assert said(port, ["GET /netron/x HTTP/1.1", own]) == 404
    assert said(port, ["GET /api/v1/nni/check-status HTTP/1.1", own]) == 200


def test_raw_requests_of_other_origins_start_nothing(experiment):
    refuses(experiment.client.port)
    assert len(experiment.client.trials()) == 1
    assert len(started(experiment)) == 1


class Quiet(http.server.BaseHTTPRequestHandler):
    """Serves the page of the attack."""

    page = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    pytest.importorskip("selenium", reason="selenium is not installed")
    webui = pytest.importorskip("webui")
    if webui.missing():
        pytest.skip(webui.missing())
    rules = ("--host-resolver-rules=MAP rebind.example 127.0.0.1",)
    with webui.browser(tmp_path_factory.mktemp("profile"), more=rules) as driver:
        yield driver


def test_a_page_of_another_origin_starts_nothing(experiment, driver):
    port = experiment.client.port
    Quiet.page = f"<script>{ATTACK % port}</script>attacker".encode()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "rebind.example"):
            driver.get(f"http://{host}:{server.server_port}/")
            told = driver.execute_async_script("attack(arguments[arguments.length - 1])")
            assert len(told) == 10
            # An opaque answer (status 0) is the refusal, which the page may not read.
            assert {line.split(" ", 1)[-1] for line in told} <= {"refused", "0"}, told
        server.shutdown()
    driver.get(f"http://rebind.example:{port}/")  # the very port, under a name that was bound to it
    assert "refused: Host" in driver.page_source
    time.sleep(2)
    assert len(experiment.client.trials()) == 1
    assert len(started(experiment)) == 1


def test_the_web_ui_itself_is_served(experiment, driver):
    driver.get(f"http://127.0.0.1:{experiment.client.port}/oview")
    deadline = time.monotonic() + 60
    while "DONE" not in driver.page_source and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "DONE" in driver.page_source


def test_tensorboard_answers_only_its_own_pages(experiment, tmp_path):
    import subprocess

    private = experiment.folder / "launch"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = f"{private}/bin/tensorboard --bind_all --logdir={tmp_path} --port={port}"
    process = subprocess.Popen(line.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ})  # fmt: skip

    def ask(**headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/data/environment", headers=headers)
        return connection.getresponse().status

    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                assert ask() == 200
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert ask(Host=f"localhost:{port}", Origin=f"http://localhost:{port}") == 200
        assert ask(Host=f"rebind.example:{port}") == 403
        assert ask(Origin="http://127.0.0.1:1") == 403
        assert ask(**{"Sec-Fetch-Site": "cross-site"}) == 403
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_parameters_that_name_code_are_refused_by_the_trial(monkeypatch, tmp_path):
    import nni
    from nni.runtime import trial_command_channel

    from nni_gconv.compat import nni_trial
    from nni_gconv.errors import ConfigError

    class Channel:
        def receive_parameter(self):
            code = {"__nni_type__": "path:os.getcwd"}
            return nni.load(json.dumps({"parameter_id": 0, "parameters": {"seed": code}}))

    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setattr("nni.trial._params", None)
    monkeypatch.setattr(trial_command_channel, "_channel", Channel())
    with pytest.raises(ConfigError, match="parameters name code"):
        nni_trial.next_parameters()
