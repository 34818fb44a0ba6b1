"""Packages are entered by their faces: no code looks for a name behind one."""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import nni_gconv

ROOT = Path(nni_gconv.__file__).parent
FACES = [
    "analysis", "artefact", "compat", "display", "experiment", "experiment.checks", "graph",
    "groupconv", "groupconv.forms", "groupconv.partition", "groupconv.search", "inference",
    "installation", "profiling", "pruning", "recipe", "remote", "report", "shrinking", "speedup",
    "training", "training.data", "training.logs", "training.zoo", "tuning",
]  # fmt: skip


@cache
def imports(path):
    """Modules that a file of the package imports from."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def behind(face, files):
    """Files outside a package that import from a module inside it."""
    own = ROOT / face.replace(".", "/")
    inner = {f"nni_gconv.{other}" for other in FACES}
    return [
        (str(path.relative_to(ROOT)), module)
        for path in files
        if not path.is_relative_to(own)
        for module in imports(path)
        if module.startswith(f"nni_gconv.{face}.") and module not in inner
    ]


@pytest.mark.parametrize("face", FACES)
def test_others_import_from_the_face(face):
    assert behind(face, ROOT.rglob("*.py")) == []


def test_an_import_from_behind_a_face_is_found():
    path = ROOT / "cli" / "somewhere.py"

    class File(type(path)):
        __hash__ = object.__hash__

        def read_text(self, **_):
            return "from nni_gconv.graph.channels import Walker"

    assert behind("graph", [File(path)]) == [("cli/somewhere.py", "nni_gconv.graph.channels")]
    assert behind("speedup", [File(path)]) == []


@pytest.mark.parametrize("face", FACES)
def test_a_face_says_what_it_is_and_holds_what_it_names(face):
    module = importlib.import_module(f"nni_gconv.{face}")
    assert "egin with" in module.__doc__
    assert "nows of" in module.__doc__ or "eeds" in module.__doc__
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_only_faces_list_names():
    modules = [path for path in ROOT.rglob("*.py") if path.name not in ("__init__.py", "tuner.py")]
    assert [path for path in modules if "\n__all__ =" in path.read_text()] == []


def test_rooms_and_files_are_small():
    """At most 15 modules a folder beside ``__init__`` and its like, at most 400 lines a file."""
    files = sorted(ROOT.rglob("*.py"))
    rooms = Counter(file.parent for file in files if not file.stem.startswith("_"))
    assert {str(room): number for room, number in rooms.items() if number > 15} == {}
    lines = {str(file): file.read_text(encoding="utf-8").count("\n") for file in files}
    assert {file: number for file, number in lines.items() if number > 400} == {}


SCRIPTS = {
    file.stem: file for file in sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_benchmark_imports_is_there(name):
    """Without the peers that it compares with: nobody runs them all before a release."""
    for node in ast.walk(ast.parse(SCRIPTS[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nni_gconv"):
            module = importlib.import_module(node.module)
            for one in (alias.name for alias in node.names):
                assert hasattr(module, one) or importlib.util.find_spec(f"{node.module}.{one}")
