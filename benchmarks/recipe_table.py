"""Write the tables of docs/recipe.md: every key of a recipe, every option of every method.

python benchmarks/recipe_table.py            # rewrites the page
python benchmarks/recipe_table.py --check    # exit code 1 where the page is not what it would write
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nni_gconv.checked import allowed_values
from nni_gconv.pruning.methods.nni import NNI_METHODS
from nni_gconv.pruning.options import ChannelOptions
from nni_gconv.pruning.registry import METHODS, Method, find_method
from nni_gconv.recipe import Recipe
from nni_gconv.recipe.schema import TrainStage

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
BEGIN, END = "<!-- keys: written by benchmarks/recipe_table.py -->", "<!-- end of keys -->"
HEAD = ["| {} | what may stand there | default | |", "|---|---|---|---|"]


def rows(
    kind: type[BaseModel], prefix: str = "", values: Any = None, known: Any = None
) -> Iterator[str]:
    """Yield a row a key; those that are in `known` with the same default are not written again."""
    for name, field in kind.model_fields.items():
        value = getattr(values, name, field.get_default(call_default_factory=True))
        section = section_of(field)
        if section is not None:
            inner = value if isinstance(value, BaseModel) else None
            yield from rows(section, f"{prefix}{name}.", inner, known)
            continue
        key = prefix.partition(".")[2] + name
        if known is None or known.get(key, field) != value:
            yield row(prefix + name, field, value)


def defaults(kind: type[BaseModel]) -> dict[str, Any]:
    """Return every dotted key of a section with its default."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        section, value = section_of(field), field.get_default(call_default_factory=True)
        if section is None:
            found[name] = value
        else:
            found.update({f"{name}.{k}": v for k, v in defaults(section).items()})
    return found


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a section's keys; None for a plain value."""
    annotations = [field.annotation, *get_args(field.annotation)]
    # To Python 3.10 dict[str, float] is a type, of which nothing can be asked.
    kinds = [k for k in annotations if isinstance(k, type) and get_origin(k) is None]
    return next((k for k in kinds if issubclass(k, BaseModel)), None)


def row(name: str, field: FieldInfo, value: Any = PydanticUndefined) -> str:
    """Write one key."""
    if value is PydanticUndefined:
        value = field.get_default(call_default_factory=True)
    cells = [f"`{name}`", allowed_values(field), shown(value), field.description or ""]
    return "| " + " | ".join(cell.replace("|", "or").replace("\n", " ") for cell in cells) + " |"


def shown(value: Any) -> str:
    """Write what holds where nothing is given."""
    if value is PydanticUndefined:
        return "needed"
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{getattr(value, 'name', value)}`"


def options(method: Method) -> list[str]:
    """Write the options of a method but those that all channel pruners have."""
    fields = dict(method.kind.Options.model_fields)
    if method.nni is not None:
        fields = dict(NNI_METHODS[method.nni].model_fields)
    names = [n for n in method.option_names() if n in fields]
    shared = ChannelOptions.model_fields
    return [row(n, fields[n]) for n in names if repr(shared.get(n)) != repr(fields[n])]


def tables() -> str:
    """Return the whole text between the marks."""
    head = [line.format("key") for line in HEAD]
    lines: list[str] = []
    plain = [row(n, f) for n, f in Recipe.model_fields.items() if section_of(f) is None]
    lines += ["### The recipe itself", "", *head, *plain, ""]
    train = defaults(TrainStage)
    for name, field in Recipe.model_fields.items():
        section = section_of(field)
        if section is None:
            continue
        again = name in ("sparsify", "finetune")
        found = list(rows(section, f"{name}.", known=train if again else None))
        said = (
            ["The keys of `train`, except `share`" + (", and:" if found else "."), ""]
            if again
            else []
        )
        lines += [f"### {name}", "", *said, *([*head, *found, ""] if found else [])]
    lines += ["### prune.options", "", "Every method that removes channels takes:", ""]
    head = [line.format("option") for line in HEAD]
    shared = find_method("slimming").option_names()
    lines += [
        *head,
        *(row(n, f) for n, f in ChannelOptions.model_fields.items() if n in shared),
        "",
    ]
    lines += ["Those that make groups (`gconv`, `shuffle`) take `schedule` of these. And:", ""]
    for name in [*METHODS, *(f"nni:{one}" for one in NNI_METHODS)]:
        found = options(find_method(name))
        lines += [
            f"**{name}**{'' if found else ': no others.'}",
            "",
            *([*head, *found, ""] if found else []),
        ]
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with its tables as they have to be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    now = PAGE.read_text(encoding="utf-8")
    wanted = page(now)
    if parser.parse_args().check:
        sys.exit(now != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
