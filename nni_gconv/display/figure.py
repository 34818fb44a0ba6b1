"""Pictures without a display, whole or not there at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.files import output_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any colour vision; black and yellow are left out, black
# for reference lines and yellow for being unreadable on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_FORMATS = (".png", ".svg", ".pdf")


def picture_path(path: str | Path) -> Path:
    """Return the path of a picture if its format is known.

    Raises
    ------
    ConfigError
        It ends in none of ``.png``, ``.svg``, ``.pdf``.

    Examples
    --------
    >>> picture_path("runs/plot.svg").name
    'plot.svg'
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(unknown_name("picture format", path.suffix, _FORMATS, str(path)))
    return path


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure of so many inches, and write it to `path` when the block ends well.

    Examples
    --------
    >>> with picture(Path("line.png"), 4, 3) as figure:  # doctest: +SKIP
    ...     figure.subplots().plot([0, 1])
    """
    # The object interface on the Agg canvas: no display, and pyplot's global state stays alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with output_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.lower()[1:])
