"""The ``data:`` section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DataName = Literal["digits", "cifar10", "cifar100", "fashion_mnist", "imagefolder", "synthetic"]


class Normalize(BaseModel):
    """Mean and standard deviation of each channel, for pixels scaled to [0, 1]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, ...] = Field(description="Subtracted, one number a channel.")
    std: tuple[float, ...] = Field(description="Divided by, one positive number a channel.")

    @model_validator(mode="after")
    def _same_length(self) -> Normalize:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std has {len(self.std)}; "
                "both need one a channel"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        return self


class Transforms(BaseModel):
    """Torchvision's v2 transforms by name, for images in folders."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: tuple[str | dict[str, Any], ...] | None = Field(
        None, description="Of training images, such as {RandomCrop: {size: 32}}; null: as eval."
    )
    eval: tuple[str | dict[str, Any], ...] = Field(
        description="Of validation, test and calibration images; all to one size."
    )


class DataSettings(BaseModel):
    """Which images, how many, in what batches.

    Examples
    --------
    >>> DataSettings(name="cifar10", root="~/data").batch_size
    128
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: DataName = Field("digits", description="Data set; digits comes with scikit-learn.")
    root: str | None = Field(None, description="Folder of the data set; ~ is your home.")
    download: bool = Field(False, description="Fetch the data set into root when it is missing.")
    batch_size: int = Field(128, ge=1, description="Training images a step, in each process.")
    eval_batch_size: int | None = Field(
        None, ge=1, description="Images a step in evaluation; default: twice batch_size."
    )
    workers: int = Field(2, ge=0, description="Processes that decode images (imagefolder only).")
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the training images held out for validation."
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the images held out for the test where a folder has no part for it.",
    )
    image_size: int | None = Field(
        None,
        ge=4,
        description="Side in pixels; default: the data set's own (imagefolder with images of "
        "several sizes: 224).",
    )
    augment: bool | None = Field(
        None, description="Random crops and flips in training; default: all but synthetic."
    )
    cutout: int = Field(0, ge=0, description="Side in pixels of a square blanked at random.")
    transforms: Transforms | None = Field(
        None,
        description="Torchvision's transforms by name, in place of image_size and augment "
        "(imagefolder only).",
    )
    normalize: Normalize | None = Field(
        None, description="Mean and std in place of the data set's own."
    )
    seed: int | None = Field(
        None, ge=0, description="Fixes the validation split; default: the seed of the run."
    )
    train_size: int | None = Field(
        None, ge=2, description="Use only so many training images, validation included."
    )
    test_size: int | None = Field(None, ge=1, description="Use only so many test images.")
    in_channels: int | None = Field(
        None,
        ge=1,
        description="3 repeats gray images three times; for synthetic any number (default 3).",
    )
    num_classes: int | None = Field(
        None, ge=2, description="Number of classes of synthetic images (default 10)."
    )

    @property
    def path(self) -> Path | None:
        """`root` with ``~`` expanded."""
        return None if self.root is None else Path(self.root).expanduser()

    @model_validator(mode="after")
    def _options_fit(self) -> DataSettings:
        if self.num_classes is not None and self.name != "synthetic":
            raise ValueError(f"num_classes is an option of synthetic; {self.name} has its own")
        if self.transforms is not None:
            if self.name != "imagefolder":
                raise ValueError("transforms is an option of imagefolder")
            for key in ("image_size", "augment"):
                if getattr(self, key) is not None:
                    raise ValueError(f"transforms and {key} exclude each other")
        return self
