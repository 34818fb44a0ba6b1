"""Data sets: loading, splitting, batches.

Examples
--------
>>> from nni_gconv.training.data import DataSettings, load_data, make_loaders
>>> settings = DataSettings(name="digits", batch_size=64)
>>> loaders = make_loaders(load_data(settings, seed=0), settings, seed=0, device="cpu")
>>> len(loaders.train)
20

Names are imported when they are first used: reading a recipe needs the settings alone, not torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_gconv.training.data.arrays import ArrayData
    from nni_gconv.training.data.augment import Augmentation
    from nni_gconv.training.data.bundle import DataBundle
    from nni_gconv.training.data.folder import FolderData
    from nni_gconv.training.data.load import load_data
    from nni_gconv.training.data.loaders import Loader, Loaders, make_loaders
    from nni_gconv.training.data.settings import DataName, DataSettings, Normalize

__all__ = [
    "ArrayData",
    "Augmentation",
    "DataBundle",
    "DataName",
    "DataSettings",
    "FolderData",
    "Loader",
    "Loaders",
    "Normalize",
    "load_data",
    "make_loaders",
]

_HOME = {
    "ArrayData": "arrays",
    "Augmentation": "augment",
    "DataBundle": "bundle",
    "DataName": "settings",
    "DataSettings": "settings",
    "FolderData": "folder",
    "Loader": "loaders",
    "Loaders": "loaders",
    "Normalize": "settings",
    "load_data": "load",
    "make_loaders": "loaders",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
