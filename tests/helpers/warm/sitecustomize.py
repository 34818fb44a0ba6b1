"""A process goes on in one that has loaded torch already; see the fixture ``warm``.

Python imports this file when it starts, of a folder on PYTHONPATH.
"""

import os
import sys

#: The command, what starts its processes, NNI's dispatcher and what else its manager starts.
MODULES = (
    "nni_gconv", "nni_gconv.compat.torchrun", "nni",
    "nni.tools.nni_manager_scripts.collect_version_info",
)  # fmt: skip

asked = [word for word in sys.orig_argv[1:] if word != "-u"]  # torchrun says it
known = asked[:1] == ["-m"] and asked[1] in MODULES
if os.environ.get("WARM_SOCKET") and (known or asked[:1] == [os.environ.get("WARM_SCRIPT")]):
    import json
    import signal
    import socket

    words = json.dumps([asked, os.getcwd(), dict(os.environ)]).encode()  # noqa: PTH109
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.environ["WARM_SOCKET"])
    socket.send_fds(server, [len(words).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(words)
    answers = server.makefile()
    child = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(child, number))
    code = int(answers.readline() or -signal.SIGKILL)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
