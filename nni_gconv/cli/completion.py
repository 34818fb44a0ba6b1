"""What TAB offers for the name of a network; torch is not imported for it."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

#: Those of :func:`nni_gconv.training.zoo.list_models`.
OURS = (
    *(f"cifar_resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("condensenet", "condensenet86", "densenet", "densenet10", "densenet22", "densenet40"),
    *("preresnet", *(f"preresnet{depth}" for depth in (11, 20, 29, 56, 110, 164))),
    *("resnet", *(f"resnet{n}{b}" for n in (8, 14, 20, 32, 44, 56, 110) for b in ("", "b"))),
    *("vgg", "vgg11", "vgg13", "vgg16", "vgg19"),
)
_OTHERS = ("torchvision", "timm")
#: Set where a shell completes the part behind a colon alone: what stands before it.
_BEFORE = "_NNI_GCONV_BEFORE_COLON"
#: Both packages declare a model by a decorator above its function.
_DECLARED = re.compile(
    r'^@register_model(?:\((?:name="(\w+)")?\))?\n(?:.*\n)*?def (\w+)', re.MULTILINE
)


def complete_model(incomplete: str) -> list[str]:
    """Return the names of networks that begin so: ours, ``torchvision:NAME`` and ``timm:NAME``.

    Examples
    --------
    >>> complete_model("resnet5")
    ['resnet56', 'resnet56b']
    """
    names = [*OURS, *(f"{package}:" for package in _OTHERS if not incomplete)]
    for package in _OTHERS:
        if incomplete and f"{package}:".startswith(incomplete[: len(package) + 1]):
            names += [f"{package}:{name}" for name in declared(package)]
    return sorted(name for name in names if name.startswith(incomplete))


def offer_models(_context: Any, _parameter: Any, incomplete: str) -> list[str]:
    """Complete a parameter of a command; what a shell has parted off is left out."""
    cut = len(os.environ.get(_BEFORE, ""))
    return [name[cut:] for name in complete_model(incomplete)]


def declared(package: str) -> list[str]:
    """Return the names of a package's models as its source declares them; none without it."""
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    files = [file for place in places for file in Path(place, "models").rglob("*.py")]
    return [
        given or function
        for file in files
        for given, function in _DECLARED.findall(file.read_text(encoding="utf-8"))
    ]


def join_at_colons() -> None:
    """Give bash's words back as they were typed: it parts them at colons, and wants the last part.

    Nothing is done where this process was not started to complete.
    """
    words = os.environ.get("COMP_WORDS", "").split("\n")
    at = int(os.environ.get("COMP_CWORD", "0"))
    if "_NNI_GCONV_COMPLETE" not in os.environ or at >= len(words):
        return
    begin = at if words[at] == ":" else at - 1
    if begin < 1 or words[begin] != ":":
        return
    typed = "".join(words[begin - 1 : at + 1])
    os.environ[_BEFORE] = f"{words[begin - 1]}:"
    os.environ["COMP_WORDS"] = "\n".join([*words[: begin - 1], typed, *words[at + 1 :]])
    os.environ["COMP_CWORD"] = str(begin - 1)
