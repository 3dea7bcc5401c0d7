"""The views of an image that are encoded: the image as it is, and its augmented copies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from mdaug import augment
from mdaug.images import channels_first, in_range
from shards.dataset import ShardDataset

LONGEST_KEY = 80


class Views(Dataset):
    """Images as tensors; view j is copy j % (1 + K) of image j // (1 + K), and copy 0 is the image itself.

    Without copies the views are levels, which take a quarter of the bytes on their way to the device.

    Args:
        images: the packed images.
        copies: K; 0 for a split that is never augmented.
        names: the transforms, see `augment`.
        seed: decides together with the image's key and the number of the copy what is done to a copy.
        floor: levels 0 to 255 of no echo, one per channel.
    """

    def __init__(self, images: ShardDataset, copies: int, names: Sequence[str], seed: int, floor: list[int] | None):
        self.images, self.copies, self.seed = images, copies, seed
        colours = images.index["image_shape"][2] == 3
        self.names = [name for name in names if not (colours and name in augment.LEVELS_ONLY)]
        self.floor = [level / 127.5 - 1 for level in floor] if floor else None

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.images) * (1 + self.copies)

    def __getitem__(self, j: int) -> torch.Tensor:
        """Return view j, (C, H, W): float32 in [-1, 1], without copies uint8."""
        image, copy = divmod(j, 1 + self.copies)
        levels = channels_first(self.images[image]["image"])
        if self.copies == 0:
            return levels
        pixels = in_range(levels)
        if copy == 0:
            return pixels
        rng = augment.generator_at(self.seed, self.images.key(image), copy)
        return augment.transform(pixels[None], augment.draw(rng, self.names), rng, self.floor)[0]

    def row(self, j: int) -> np.ndarray:
        """Return the augmentation of view j, float32 (augment.SIZE,); zeros of an image itself."""
        image, copy = divmod(j, 1 + self.copies)
        if copy == 0:
            return np.zeros(augment.SIZE, dtype=np.float32)
        return augment.draw(augment.generator_at(self.seed, self.images.key(image), copy), self.names)[0]

    def key(self, j: int) -> str:
        """Return the key of view j: that of its image, with `_a1` ... `_aK` for the copies."""
        image, copy = divmod(j, 1 + self.copies)
        key = self.images.key(image)
        if copy == 0:
            return key
        name = f"{key}_a{copy}"
        return (
            name if len(name) <= LONGEST_KEY else f"{key[:50]}_{hashlib.sha256(key.encode()).hexdigest()[:16]}_a{copy}"
        )
