"""Compact files in folders and on the Hugging Face hub, as its models are kept.

A folder holds ``compact.safetensors`` (weights and plan, see :mod:`nni_gconv.artefact.files`) and a
README. The architecture is the user's own and is never in it: nothing in a folder is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_gconv.artefact.files import load_compact, save_compact
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.files import write_text

COMPACT = "compact.safetensors"


def save_pretrained(model: nn.Module, folder: str | Path, *, recipe: Any = None) -> Path:
    """Write a small model into a folder, with a README that says how it is loaded.

    Parameters
    ----------
    model : nn.Module
        From :func:`nni_gconv.shrink` or :class:`nni_gconv.ModelSpeedup`.
    folder : str or Path
        Made where it is missing.
    recipe : mapping, optional
        As for :func:`save_compact`.

    Returns
    -------
    Path
        The folder.

    Examples
    --------
    >>> import tempfile
    >>> folder = save_pretrained(nn.Sequential(nn.Linear(4, 2)), tempfile.mkdtemp())
    >>> from_pretrained(folder, lambda: nn.Sequential(nn.Linear(4, 8)))[0].out_features
    2
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    save_compact(model, folder / COMPACT, recipe=recipe)
    write_text(folder / "README.md", _CARD.format(name=type(model).__name__, file=COMPACT))
    return folder


def from_pretrained(
    source: str | Path,
    model_fn: Callable[[], nn.Module],
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Load a small model from a folder or a repository of the hub.

    Parameters
    ----------
    source : str or Path
        A folder that :func:`save_pretrained` wrote, or ``owner/name`` on the hub.
    model_fn : callable
        Makes the dense architecture.
    revision : str, optional
        Branch, tag or commit on the hub.
    device : torch.device or str
        Where the model shall be.

    Raises
    ------
    CheckpointError
        There is no such file, or it does not fit.
    ConfigError
        ``source`` is no folder, and huggingface_hub is not installed.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return load_compact(folder / COMPACT, model_fn, device=device)
    hub = _hub(str(source))
    try:
        file = hub.hf_hub_download(str(source), COMPACT, revision=revision)
    except Exception as error:  # of the network, and of the library's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{source}: no such folder, and not on the hub: {reason}") from error
    return load_compact(file, model_fn, device=device)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    folder: str | Path | None = None,
    private: bool = True,
    api: Any = None,
) -> str:
    """Write a small model into a folder and upload it; the login is that of huggingface_hub.

    Parameters
    ----------
    model : nn.Module
        As for :func:`save_pretrained`.
    repo_id : str
        ``owner/name``; made where it is missing.
    folder : str or Path, optional
        Kept; default: a temporary one.
    private : bool, default True
        Of a repository that is made.
    api : huggingface_hub.HfApi, optional
        Default: a new one.

    Returns
    -------
    str
        Address of what was uploaded.
    """
    import tempfile

    api = _hub(repo_id).HfApi() if api is None else api
    with tempfile.TemporaryDirectory() as temporary:
        written = save_pretrained(model, temporary if folder is None else folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(written)))


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f"{what}: is no folder here, and the hub needs huggingface_hub: "
            "pip install 'nni-gconv[hub]'"
        ) from error
    return huggingface_hub


_CARD = """---
library_name: nni-gconv
---

A structurally pruned {name}. Weights and plan are in `{file}`; the unpruned architecture
rebuilds it:

```python
from nni_gconv.artefact import from_pretrained

model = from_pretrained("FOLDER or owner/name", {name})
```
"""
