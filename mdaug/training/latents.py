"""Encoded images with what the network is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from shards.dataset import ShardDataset
from shards.order import EpochOrder, random_at

STREAM_AUGMENT = 1  # see shards/order.py


class LatentSet(Dataset):
    """The latents of one split; item j is copy j % (1 + K) of image j // (1 + K), and copy 0 the image itself.

    Args:
        folder: a folder of latent shards, such as `latents/train`.
        conditions: float32 (images, k), normalised, or None.

    Attributes:
        classes: class names.
        copies: augmented copies K of each image.
    """

    def __init__(self, folder: Path, conditions: np.ndarray | None = None):
        self.shards = ShardDataset(folder, fields=("array",))
        self.copies: int = self.shards.index.get("copies", 0)
        if self.copies:
            self.shards = ShardDataset(folder, fields=("array", "meta"))
        self.classes = self.shards.classes
        self.conditions = conditions

    @property
    def num_images(self) -> int:
        """Number of images, copies not counted."""
        return len(self.shards) // (1 + self.copies)

    def __len__(self) -> int:
        """Return the number of latents, copies counted."""
        return len(self.shards)

    def __getitem__(self, j: int) -> dict[str, Any]:
        """Return {"array", "label"} and, where there are any, "augment" (numbers,) and "conditions" (k,)."""
        sample = self.shards[j]
        if self.copies:
            sample["augment"] = np.asarray(sample["meta"]["augment"], dtype=np.float32)
        if self.conditions is not None:
            sample["conditions"] = self.conditions[j // (1 + self.copies)]
        return sample


class CopyOrder(EpochOrder):
    """Position -> item of a `LatentSet`: an epoch shows every image once, as it is or as one of its copies.

    So copies change neither the length of an epoch nor the balance of classes and recordings.

    Args:
        num_images: images, copies not counted.
        seed: decides the order and the copies.
        copies: augmented copies K of each image.
        probability: share of positions at which a copy is shown, any of the K alike.
    """

    def __init__(self, num_images: int, seed: int, copies: int, probability: float):
        super().__init__(num_images, seed)
        self.copies, self.probability = copies, probability

    def index(self, position: int) -> int:
        """Return the item shown at a position >= 0."""
        item = super().index(position) * (1 + self.copies)
        rng = random_at(self.seed, STREAM_AUGMENT, position)
        if self.copies and rng.random() < self.probability:
            item += 1 + int(rng.integers(self.copies))
        return item
