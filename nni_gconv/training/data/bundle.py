"""What a data set is once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from nni_gconv.training.data.arrays import ArrayData
from nni_gconv.training.data.augment import Augmentation
from nni_gconv.training.data.folder import FolderData
from nni_gconv.training.data.settings import Normalize


@dataclass(frozen=True)
class DataBundle:
    """Training, validation and test images of one data set.

    Validation is held out of the training images, stratified, and fixed by a seed; the test
    images are the published ones and serve for nothing but the final number.
    """

    train: ArrayData | FolderData
    val: ArrayData | FolderData
    test: ArrayData | FolderData
    num_classes: int
    input_shape: tuple[int, int, int]
    """(C, H, W) of one image."""
    class_names: tuple[str, ...] | None
    description: str
    """One line for logs and reports."""
    normalize: Normalize
    augmentation: Augmentation | None
    """What is done at random to training batches; None for nothing."""
