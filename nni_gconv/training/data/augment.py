"""Random crop, flip and cutout of a whole batch at once.

What is drawn depends only on the generator, never on the device, and each draw is made whether or
not it is used: switching flips off leaves the crops as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Random numbers for a batch: crop corner, flip and cutout centre of each image."""

    corner: Tensor
    """int64 (B, 2): row and column where the crop begins in the padded image."""
    flip: Tensor
    """bool (B,): whether the image is mirrored."""
    centre: Tensor
    """int64 (B, 2): row and column of the centre of the blanked square."""

    def part(self, start: int, stop: int, device: torch.device) -> Draws:
        """Return images `start` to `stop` of the batch, on `device`."""
        tensors = (self.corner, self.flip, self.centre)
        return Draws(*(t[start:stop].to(device, non_blocking=True) for t in tensors))


@dataclass(frozen=True)
class Augmentation:
    """What is done at random to training images.

    Parameters
    ----------
    padding : int
        Black pixels added on each side before cropping back to the old size.
    flip : bool
        Mirror left and right with probability 1/2.
    cutout : int
        Side of a square set to the mean colour; 0 for none. Its centre lies anywhere in the
        image, so that part of it may fall outside.

    Examples
    --------
    >>> augmentation = Augmentation(padding=1)
    >>> draws = augmentation.draw(2, (8, 8), torch.Generator().manual_seed(0))
    >>> augmentation.crop(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), draws).shape
    torch.Size([2, 3, 8, 8])
    """

    padding: int = 0
    flip: bool = False
    cutout: int = 0

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw for `count` images of `size` (height, width) pixels."""
        corner = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)
        flip = torch.rand(count, generator=generator) < 0.5
        centre = (torch.rand(count, 2, generator=generator) * torch.tensor(size)).long()
        return Draws(corner, flip, centre)

    def crop(self, images: Tensor, draws: Draws) -> Tensor:
        """Crop and flip `images` (B, C, H, W) in one gather; the dtype stays."""
        if not (self.padding or self.flip):
            return images
        batch, _, height, width = images.shape
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        rows = torch.arange(height, device=images.device)
        cols = torch.arange(width, device=images.device).expand(batch, width)
        if self.flip:
            cols = torch.where(draws.flip[:, None], cols.flip(1), cols)
        rows = rows + draws.corner[:, :1]
        cols = cols + draws.corner[:, 1:]
        index = torch.arange(batch, device=images.device)[:, None, None]
        # A slice between two index arrays puts the channel axis last.
        return padded[index, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)

    def blank(self, images: Tensor, draws: Draws) -> Tensor:
        """Set the cutout square of normalised `images` (B, C, H, W) to zero, their mean."""
        if not self.cutout:
            return images
        height, width = images.shape[2:]
        low, high = self.cutout // 2, self.cutout - self.cutout // 2
        inside = []
        for axis, length in enumerate((height, width)):
            place = torch.arange(length, device=images.device)
            centre = draws.centre[:, axis : axis + 1]
            inside.append((place >= centre - low) & (place < centre + high))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return images.masked_fill(square, 0.0)
