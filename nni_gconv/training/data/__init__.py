"""Data sets: loading, splitting, batches.

Examples
--------
>>> from nni_gconv.training.data import DataSettings, load_data, make_loaders
>>> settings = DataSettings(name="digits", batch_size=64)
>>> loaders = make_loaders(load_data(settings, seed=0), settings, seed=0, device="cpu")
>>> len(loaders.train)
20

Begin with :func:`load_data` and :func:`make_loaders`; `settings` has the recipe's keys. Knows of
files and images; of no model. Reading a recipe needs the settings alone, not torch.
"""

from typing import TYPE_CHECKING

import lazy_loader

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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "arrays": ["ArrayData"],
        "augment": ["Augmentation"],
        "bundle": ["DataBundle"],
        "folder": ["FolderData"],
        "load": ["load_data"],
        "loaders": ["Loader", "Loaders", "make_loaders"],
        "settings": ["DataName", "DataSettings", "Normalize"],
    },
)
