"""Roles of reStructuredText in docstrings become plain code on the site."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|doc|exc):`~?([^`<]+?)(?: <[^>]*>)?`")


class PlainRoles(griffe.Extension):
    """Rewrite ``:class:`~package.Name``` as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of whatever was read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
