"""Who may ask the manager: this machine's own pages and programs, and nobody else."""

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path

import nni_node
import pytest

from nni_gconv.compat import write_launch_files

NODE = str(Path(nni_node.__path__[0]) / "node")
SERVER = """
const http = require('http');
const server = http.createServer((_, res) => res.end('served'));
server.on('upgrade', (_, socket) => socket.end('HTTP/1.1 101 Switching Protocols\\r\\n\\r\\n'));
server.listen(0, () => console.log(server.address().port));
process.stdin.on('end', () => process.exit()).resume();
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    write_launch_files(folder)
    return folder


def serve(folder, **env):
    """Start a bare server behind the guard and return it with its port."""
    process = subprocess.Popen(
        [NODE, "--require", str(folder / "bind.js"), "--require", str(folder / "guard.js"),
         "-e", SERVER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env},
    )  # fmt: skip
    return process, int(process.stdout.readline())


@pytest.fixture(scope="module")
def port(launch):
    process, port = serve(launch)
    yield port
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def open_port(launch):
    process, port = serve(launch, NNI_GCONV_OPEN="1", NNI_GCONV_HOSTS="box.lan")
    yield port
    process.stdin.close()
    process.wait(timeout=30)


def ask(port, *lines, method="GET", path="/"):
    """Send a request with exactly these header lines and return the status."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = [f"{method} {path} HTTP/1.1", *lines, "Connection: close", "", ""]
        connection.sendall("\r\n".join(head).encode())
        said = [line.split()[1] for line in connection.makefile("rb") if line.startswith(b"HTTP/")]
        return next(int(status) for status in said if status != b"100")


def upgrade(port, *lines):
    """Ask for a WebSocket and return the status."""
    asked = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = ["GET /tuner HTTP/1.1", *lines, *asked, "Connection: Upgrade", "", ""]
        connection.sendall("\r\n".join(head).encode())
        return int(connection.makefile("rb").readline().split()[1])


OWN = [
    ("Host: 127.0.0.1:{0}",),
    ("Host: localhost:{0}",),
    ("Host: [::1]:{0}",),
    ("Host: LOCALHOST:{0}", "Origin: http://localhost:{0}"),
    ("Host: 127.0.0.1:{0}", "Origin: http://127.0.0.1:{0}"),
    # `ssh -L 9999:127.0.0.1:PORT` on another machine.
    ("Host: localhost:9999", "Origin: http://localhost:9999", "Sec-Fetch-Site: same-origin"),
]
FOREIGN = [
    ("Host: rebind.example:{0}",),
    ("Host: rebind.example:{0}", "Origin: http://rebind.example:{0}"),
    ("Host: 127.0.0.1.rebind.example:{0}",),
    ("Host: localhost.:{0}",),
    ("Host: 192.168.0.7:{0}",),
    ("Host: 127.0.0.1@rebind.example:{0}",),
    ("Host: ",),
    ("Host: 127.0.0.1:{0}", "Host: rebind.example"),
    ("Host: 127.0.0.1:{0}", "Origin: http://rebind.example"),
    ("Host: 127.0.0.1:{0}", "Origin: null"),
    ("Host: 127.0.0.1:{0}", "Origin: https://127.0.0.1:{0}"),
    ("Host: 127.0.0.1:{0}", "Origin: http://127.0.0.1:9999"),
    ("Host: 127.0.0.1:{0}", "Origin: http://localhost:{0}"),
    ("Host: 127.0.0.1:{0}", "Origin: "),
    ("Host: 127.0.0.1:{0}", "Sec-Fetch-Site: cross-site"),
    ("Host: 127.0.0.1:{0}", "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"),
    ("Host: 127.0.0.1:{0}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate",
     "Sec-Fetch-Dest: iframe"),
]  # fmt: skip


@pytest.mark.parametrize("lines", OWN)
def test_own_pages_and_programs_are_served(port, lines):
    lines = [line.format(port) for line in lines]
    assert ask(port, *lines) == 200
    assert ask(port, *lines, method="POST", path="/api/v1/nni/trial-jobs") == 200
    assert upgrade(port, *lines) == 101


@pytest.mark.parametrize("lines", FOREIGN)
def test_foreign_ones_are_not(port, lines):
    lines = [line.format(port) for line in lines]
    assert ask(port, *lines) in (400, 403)
    assert ask(port, *lines, method="POST", path="/api/v1/nni/trial-jobs") in (400, 403)
    assert ask(port, *lines, "Expect: 100-continue", method="PUT") in (400, 403)
    assert upgrade(port, *lines) in (400, 403)


def test_a_link_may_be_followed_but_not_posted(port):
    link = (f"Host: 127.0.0.1:{port}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate")
    assert ask(port, *link, "Sec-Fetch-Dest: document") == 200
    assert ask(port, *link, "Sec-Fetch-Dest: document", method="POST") == 403


@pytest.mark.parametrize(
    "path",
    [
        "/netron",
        "/netron/x",
        "/NETRON/x?y",
        "/%6eetron/x",
        "//netron/",
        "/api/v1/nni/trial-file/a/..%2f..%2fsecret",
        "/api/v1/nni/trial-file/a/%252e%252e%252fsecret",
        "/logs/../x",
        "/logs/..%5Cx",
        "/%zz",
        "http://127.0.0.1/x",
    ],
)
def test_no_address_leads_elsewhere(port, path):
    assert ask(port, f"Host: 127.0.0.1:{port}", path=path) == 404


def test_pages_cannot_be_put_into_another_page(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.getheader("X-Frame-Options") == "SAMEORIGIN"
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    connection.close()


def test_open_to_the_network_names_are_still_checked(open_port):
    for host in ("127.0.0.1", "192.168.0.7", "[fe80::1]", "box.lan"):
        own = f"Host: {host}:{open_port}"
        assert ask(open_port, own, f"Origin: http://{host}:{open_port}") == 200
        assert ask(open_port, own, "Origin: http://rebind.example") == 403
    assert ask(open_port, f"Host: rebind.example:{open_port}") == 403


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="needs a second user"
)
def test_another_user_of_the_machine_is_not_served(launch, port):
    script = (
        "import encodings.idna, os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "c = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "c.sendall(b'GET / HTTP/1.0\\r\\nHost: 127.0.0.1\\r\\n\\r\\n')\n"
        "print(c.recv(999).split()[1].decode())"
    )

    def as_nobody(number):
        done = subprocess.run([sys.executable, "-c", script, str(number)],
                              capture_output=True, text=True, check=True)  # fmt: skip
        return int(done.stdout)

    assert as_nobody(port) == 403
    process, shared = serve(launch, NNI_GCONV_USERS="65534")
    try:
        assert as_nobody(shared) == 200
    finally:
        process.stdin.close()
        process.wait(timeout=30)


@pytest.mark.parametrize(
    "content",
    [
        '{"value": {"__nni_type__": "bytes:AAAA"}}',
        '{"value": "{\\"__nni_obj__\\": \\"AAAA\\"}"}',
        '{"value": "{\\"\\\\u005f_symbol__\\": 1}"}',
        '{"a": {"__instance_type__": "path:os.system"}} // words',
    ],
)
def test_no_code_reaches_the_tuner(launch, tmp_path, content):
    module = tmp_path / "tuner_command_channel.js"
    module.write_text(
        "class Server { sendCommand(type, content) { console.log(type, content); } }\n"
        "const server = new Server(); exports.getTunerServer = () => server;"
    )
    script = (
        f"const s = require({str(module.with_suffix(''))!r}).getTunerServer();"
        "s.sendCommand('ME', '{\"value\": \"0.5\"}'); s.sendCommand('GE', '1');"
        "s.sendCommand('ME', process.argv[1]); s.sendCommand('AD', process.argv[1]);"
    )
    done = subprocess.run(
        [NODE, "--require", str(launch / "guard.js"), "-e", script, content],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.splitlines() == ['ME {"value": "0.5"}', "GE 1"]
    assert done.stderr.count("names code") == 2
