"""``nni-gconv docs``: the pages of the documentation, as they were when this was built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nni_gconv.cli.output import print_json


def docs(
    page: Annotated[
        str | None,
        typer.Argument(
            metavar="[PAGE]",
            help="Page to read; without one their list.",
            autocompletion=lambda incomplete: [n for n in _pages() if n.startswith(incomplete)],
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """Read a page of the documentation: what a recipe may hold, how to use machines, ..."""
    from nni_gconv.errors import ConfigError, unknown_name

    pages = _pages()
    if page is None:
        _list(pages, as_json=as_json)
        return
    name = page.removesuffix(".md").rpartition("/")[2]
    if name not in pages:
        raise ConfigError(unknown_name("page", page, pages))
    text = pages[name].read_text(encoding="utf-8")
    if as_json:
        print_json({"page": name, "markdown": text})
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        typer.echo(text)


def _list(pages: dict[str, Path], *, as_json: bool) -> None:
    questions = {name: _question(file) for name, file in pages.items()}
    if as_json:
        print_json([{"page": name, "question": text} for name, text in questions.items()])
        return
    width = max(map(len, questions), default=0)
    for name, text in questions.items():
        typer.echo(f"{name.ljust(width)}  {text}")


def _pages() -> dict[str, Path]:
    from nni_gconv.files import shipped_folder

    return {file.stem: file for file in sorted(shipped_folder("docs").glob("*.md"))}


def _question(file: Path) -> str:
    with file.open(encoding="utf-8") as text:
        return next((line[2:].strip() for line in text if line.startswith("# ")), "")
