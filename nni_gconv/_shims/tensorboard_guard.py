"""TensorBoard that answers only this machine's own pages.

Started by its path in place of ``tensorboard.main``. A page of another origin gets nothing, and so
does one whose name was bound to 127.0.0.1 (it sends its own name as Host).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

_HOSTS = {"127.0.0.1", "localhost", "[::1]", *os.environ.get("NNI_GCONV_HOSTS", "").split(",")}
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d{1,5})?")
_NUMBER = re.compile(r"\d{1,3}(\.\d{1,3}){3}|\[[0-9a-f:.]+\]")
_OPEN = os.environ.get("NNI_GCONV_OPEN") == "1"


def foreign(environ: dict[str, Any]) -> str | None:
    """Say why a request is not one of this machine's own pages, None where it is."""
    host = environ.get("HTTP_HOST", "").lower()
    found = _HOST.fullmatch(host)
    name = found[1] if found else ""
    if not name or not (name in _HOSTS or (_OPEN and _NUMBER.fullmatch(name))):
        return "Host is not this machine"
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and origin.lower() != f"http://{host}":
        return "Origin is another page"
    followed = (
        environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        and environ.get("HTTP_SEC_FETCH_DEST", "document") == "document"
        and environ.get("REQUEST_METHOD") == "GET"
    )
    if environ.get("HTTP_SEC_FETCH_SITE", "none") in ("none", "same-origin") or followed:
        return None
    return "asked for by another page"


def guarded(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Put the check before a WSGI application."""

    def checked(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        reason = foreign(environ)
        if reason is None:
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [f"refused: {reason}\n".encode()]

    return checked


def main() -> None:
    """Run TensorBoard with the check before it."""
    from absl import app
    from tensorboard import default, main_lib, program

    def server(application: Any, flags: Any) -> Any:
        return program.create_port_scanning_werkzeug_server(guarded(application), flags)

    main_lib.global_init()
    board = program.TensorBoard(plugins=default.get_plugins(), server_class=server)
    app.run(board.main, flags_parser=board.configure)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's own folder
    main()
