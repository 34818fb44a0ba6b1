"""YAML as version 1.2 reads it, and nothing that a document can be used to harm with.

YAML 1.1, which PyYAML reads, takes ``1e-3`` for a word, ``no`` for false, ``012`` for ten,
``1:30`` for ninety and ``2024-01-01`` for a date.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from nni_gconv.errors import ConfigError

_DEPTH = 64
_NODES = 200_000
_DIGITS = 400


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema of YAML 1.2 and limits."""

    def compose_document(self) -> yaml.Node | None:
        self._depth = self._aliased = 0
        self._sizes: dict[int, int] = {}
        node: yaml.Node | None = super().compose_document()
        return node

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > _DEPTH:
            raise _problem(f"nested deeper than {_DEPTH} levels", self.peek_event().start_mark)
        mark = self.peek_event().start_mark
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            size = self._sizes.get(id(node)) if alias else _size(node, self._sizes)
            self._aliased += (size or 0) if alias else 1
            if size is None or self._aliased > _NODES:
                raise _problem(
                    f"aliases make more than {_NODES} values of it"
                    if size is not None
                    else "an alias within its own anchor",
                    mark,
                )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise _problem(f"the key {key.value!r} stands here twice", key.start_mark)
                seen.add(key.value)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if any("\ud800" <= letter <= "\udfff" for letter in str(value)):
            raise _problem("half a character (a surrogate)", node.start_mark)
        if node.tag in (_INT, _FLOAT) and len(str(value)) > _DIGITS:
            raise _problem(f"a number of more than {_DIGITS} digits", node.start_mark)
        return value


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    children: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes[id(node)] = 1 + sum(sizes.get(id(child), 1) for child in children)
    return sizes[id(node)]


def _problem(text: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


_INT, _FLOAT, _BOOL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in entries if tag.endswith((":null", ":merge"))]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes words that version 1.2 takes for numbers."""


for _tag, _pattern, _first in (
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        _FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    bases = {"0o": 8, "0x": 16}
    try:
        return int(text[2:], bases[text[:2]]) if text[:2] in bases else int(text)
    except ValueError:
        raise _problem(f"{text[:40]!r} is no integer", node.start_mark) from None


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    try:
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text, flags=re.IGNORECASE))
    except ValueError:
        raise _problem(f"{text[:40]!r} is no number", node.start_mark) from None


def _boolean(loader: _Loader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node)).lower()
    if text not in ("true", "false"):
        raise _problem(f"{text[:40]!r} is neither true nor false", node.start_mark)
    return text == "true"


def _unknown(loader: _Loader, node: yaml.Node) -> Any:
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    raise _problem(f"the tag {tag!r} is not allowed", node.start_mark)


_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag and tag.endswith((":null", ":str", ":seq", ":map"))
}
_Loader.add_constructor(_INT, _integer)
_Loader.add_constructor(_FLOAT, _float)
_Loader.add_constructor(_BOOL, _boolean)
_Loader.add_constructor(None, _unknown)


def read_yaml(text: str, where: str) -> Any:
    """Read a YAML document.

    Parameters
    ----------
    text : str
        The document.
    where : str
        What to call it in messages.

    Raises
    ------
    ConfigError
        It is not valid, nested too deep, or aliases would make it explode; one line with the place.

    Examples
    --------
    >>> read_yaml("{lr: 1e-3, day: 2024-01-01, on: no, n: 0x10}", "a.yml")
    {'lr': 0.001, 'day': '2024-01-01', 'on': 'no', 'n': 16}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or ["?"])[0]
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from error


def parse_overrides(items: Sequence[str], flag: str = "-o") -> dict[str, Any]:
    """Read ``-o dotted.key=value`` options; a value is YAML, as in a recipe.

    Raises
    ------
    ConfigError
        No ``=``, no key, or a value that is not YAML.

    Examples
    --------
    >>> parse_overrides(["prune.budget.macs=0.5", "train.epochs=3", "model.name=resnet20"])
    {'prune.budget.macs': 0.5, 'train.epochs': 3, 'model.name': 'resnet20'}
    """
    overrides: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key or not all(key.split(".")):
            raise ConfigError(f"{flag} {item}: expected dotted.key=value")
        try:
            overrides[key] = read_yaml(text, "value")
        except ConfigError as error:
            reason = str(error).partition("not valid YAML: ")[2]
            raise ConfigError(
                f"{flag} {item:.200}: the value is not valid YAML: {reason}"
            ) from None
    return overrides


def write_yaml(data: Any) -> str:
    """Return a document that YAML 1.1 and 1.2 read alike.

    Examples
    --------
    >>> print(write_yaml({"name": "1e-3", "lr": 0.001}), end="")
    name: '1e-3'
    lr: 0.001
    """
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False)
    return text
