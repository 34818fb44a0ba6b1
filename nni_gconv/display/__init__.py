"""What a person sees: stages under way, tables that ``print`` shows, pictures.

Knows of files alone. Begin with :class:`Stages`, :class:`Table` or :func:`picture`.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.display.figure import COLOURS, picture, picture_path
    from nni_gconv.display.progress import Stage, Stages, advancing, counting, say
    from nni_gconv.display.tables import Table, as_html, as_text

__all__ = [
    "COLOURS",
    "Stage",
    "Stages",
    "Table",
    "advancing",
    "as_html",
    "as_text",
    "counting",
    "picture",
    "picture_path",
    "say",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "figure": ["COLOURS", "picture", "picture_path"],
        "progress": ["Stage", "Stages", "advancing", "counting", "say"],
        "tables": ["Table", "as_html", "as_text"],
    },
)
