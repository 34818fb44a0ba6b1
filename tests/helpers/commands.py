"""The command line in this process."""

from __future__ import annotations

import pytest

from nni_gconv.cli import main


def call(capture: pytest.CaptureFixture, *args: object) -> tuple[object, str, str]:
    """Run ``nni-gconv``; return its exit code and what it wrote to the two streams."""
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    out, err = capture.readouterr()
    return caught.value.code, out, err
