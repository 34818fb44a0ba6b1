"""docs/nni.md: every line of its table has tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    line
    for line in (ROOT / "docs" / "nni.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("| of NNI |", "|---"))
]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions_of(path: Path) -> set[str]:
    """Names of the test functions of a file, those of classes too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def test_there_is_a_table():
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:40] for row in ROWS])
def test_a_line_has_tests_that_exist(row):
    named = NAMED.findall(row.split("|")[3])
    assert named
    assert row.count("tests/") == len(named)
    for path, name in named:
        assert name.startswith("test_")
        assert name in functions_of(ROOT / path), f"{path}::{name}"
