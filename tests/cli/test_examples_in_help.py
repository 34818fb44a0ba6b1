"""Every command's help ends with examples that the command understands; completion is there."""

import shlex
import sys

import pytest
import typer
from commands import call

from nni_gconv.cli import app
from nni_gconv.cli.examples import EXAMPLES

COMMANDS = typer.main.get_command(app)


def test_every_command_has_examples_and_no_other_has():
    assert set(EXAMPLES) == set(COMMANDS.commands)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_understood(line):
    program, name, *arguments = shlex.split(line)
    command = COMMANDS.commands[name]
    assert program == "nni-gconv"
    # All options exist and have the values they need; files are looked at when a command runs.
    parser = command.make_parser(command.context_class(command, info_name=name))
    _, left, _ = parser.parse_args(list(arguments))
    assert left == []


def test_help_shows_them(capsys):
    for name, lines in EXAMPLES.items():
        code, out, _ = call(capsys, name, "--help")
        shown = "".join(out.split())
        assert code == 0
        assert all("".join(line.split()) in shown for line in lines), name


def test_completion_can_be_installed(capsys):
    assert "--install-completion" in call(capsys, "--help")[1]


def test_a_missing_torch_leads_to_the_doctor(capsys, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "nni_gconv"]:
        if name.startswith("nni_gconv.training.zoo"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = call(capsys, "profile", "resnet20")
    assert code == 2
    assert err == (
        "error: torch is not installed; `nni-gconv doctor` says what is missing and how to fix it\n"
    )


def test_what_prints_a_table_prints_json_too():
    files = {"init", "search-space", "export"}  # what they make is a file
    options = {name: [o for p in c.params for o in p.opts] for name, c in COMMANDS.commands.items()}
    assert {name for name, known in options.items() if "--json" not in known} == files
