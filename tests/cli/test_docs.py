"""``nni-gconv docs``: pages come with the package, and what messages name is there."""

import json
import re
from pathlib import Path

from commands import call

import nni_gconv
from nni_gconv.files import shipped_folder

PAGES = {file.stem: file for file in shipped_folder("docs").glob("*.md")}


def test_the_list_names_every_page_and_its_question(capsys):
    code, out, _ = call(capsys, "docs")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert set(lines) == set(PAGES)
    assert lines["recipe"] == "What can I write in a recipe?"
    listed = json.loads(call(capsys, "docs", "--json")[1])
    assert {one["page"]: one["question"] for one in listed} == lines


def test_a_page_is_printed_as_it_is(capsys):
    assert call(capsys, "docs", "recipe")[1].strip() == PAGES["recipe"].read_text().strip()
    assert call(capsys, "docs", "docs/recipe.md")[0] == 0
    assert json.loads(call(capsys, "docs", "groups", "--json")[1])["page"] == "groups"


def test_an_unknown_page_names_the_nearest(capsys):
    code, _, err = call(capsys, "docs", "recipes")
    assert code == 2
    assert "recipe" in err
    assert err.count("\n") == 1


def test_messages_name_no_file_of_the_repository():
    """pip brings none of them; docstrings are read where the repository is."""
    folder = Path(nni_gconv.__file__).parent
    text = {f: f.read_text() for f in folder.rglob("*.py") if "_files" not in f.parts}
    named = r'"[^"\n]*\b(docs/\w+\.md|README\.md|examples/|benchmarks/|CONTRIBUTING)[^"\n]*"'
    found = {f.name: re.findall(named, t) for f, t in text.items() if re.search(named, t)}
    assert found == {"hub.py": ["README.md"]}  # the file that is written into a folder
    commands = [name for t in text.values() for name in re.findall(r"nni-gconv docs (\w+)", t)]
    assert commands
    assert set(commands) <= set(PAGES)


def test_the_shell_completes_pages(capsys, monkeypatch):
    monkeypatch.setenv("_NNI_GCONV_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "nni-gconv docs rec")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert call(capsys, "docs")[1].split() == ["recipe"]
