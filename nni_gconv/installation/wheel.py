"""The installation here as a wheel, for machines whose package index does not have it."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from importlib import metadata
from pathlib import Path

from nni_gconv._version import __version__
from nni_gconv.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
_WHEEL = "Wheel-Version: 1.0\nGenerator: nni-gconv\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: str | Path) -> Path:
    """Write the package as it is installed here, or lies in a checkout, as a wheel.

    Parameters
    ----------
    folder : str or Path
        Where to; made.

    Returns
    -------
    Path
        The file, ``nni_gconv-VERSION-py3-none-any.whl``, for ``pip install FILE``.

    Raises
    ------
    ConfigError
        It is not installed, so that nothing says what it requires.

    Examples
    --------
    >>> write_wheel("dist").name  # doctest: +SKIP
    'nni_gconv-0.2.0-py3-none-any.whl'
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    info = f"nni_gconv-{__version__}.dist-info"
    content = {f"nni_gconv/{name}": file.read_bytes() for name, file in _files().items()}
    content[f"{info}/METADATA"] = _text("METADATA").encode()
    content[f"{info}/entry_points.txt"] = _text("entry_points.txt").encode()
    content[f"{info}/WHEEL"] = _WHEEL.encode()
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    path = folder / f"nni_gconv-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def _files() -> dict[str, Path]:
    """Return the package's files; of a checkout also what a build puts beside them."""
    found = {
        file.relative_to(_PACKAGE).as_posix(): file
        for file in sorted(_PACKAGE.rglob("*"))
        if file.is_file() and file.suffix != ".pyc"
    }
    for name, pattern in (("experiments", "*"), ("configs", "*"), ("docs", "*.md")):
        outside = _PACKAGE.parent / name
        if not (_PACKAGE / "_files" / name).is_dir() and outside.is_dir():
            for file in sorted(outside.rglob(pattern)):
                if file.is_file() and file.suffix != ".pyc":
                    found[f"_files/{file.relative_to(outside.parent).as_posix()}"] = file
    return found


def _text(name: str) -> str:
    try:
        text = metadata.distribution("nni-gconv").read_text(name)
    except metadata.PackageNotFoundError:
        text = None
    if text is None:
        raise ConfigError("nni-gconv is not installed here (pip install FOLDER): no wheel of it")
    # A checkout may be ahead of what was installed of it.
    return re.sub(r"^Version: .*$", f"Version: {__version__}", text, count=1, flags=re.MULTILINE)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
