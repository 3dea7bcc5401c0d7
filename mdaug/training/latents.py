"""Encoded images with their labels and conditions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mdaug import augment
from mdaug.training.conditions import Scaled
from shards.dataset import ShardDataset
from shards.order import Order, random_at

STREAM_AUGMENT = 1  # see shards/order.py


class LatentSet(Dataset):
    """The latents of one split; item j is copy j % (1 + K) of image j // (1 + K), and copy 0 the image itself.

    Args:
        folder: a folder of latent shards, such as `latents/train`.
        conditions: those of the images, (images, k), or None.
        labels: label in the folder -> label to give; None keeps them.

    Attributes:
        classes: class names in the folder.
        copies: augmented copies K of each image.
    """

    def __init__(self, folder: Path, conditions: Scaled | None = None, labels: np.ndarray | None = None):
        self.shards = ShardDataset(folder, fields=("array",))
        self.copies: int = self.shards.index.get("copies", 0)
        if self.copies:
            self.shards = ShardDataset(folder, fields=("array", "meta"))
        self.folder, self.index = folder, self.shards.index
        self.classes: list[str] = self.shards.classes
        self.conditions = conditions
        self.augmented = self.copies > 0
        """Whether samples tell their augmentation; an image itself has zeros."""
        self.labels = self.shards.labels if labels is None else labels[self.shards.labels]

    @property
    def counts(self) -> list[int]:
        """Images of each shard, copies not counted."""
        return [count // (1 + self.copies) for count in self.shards.counts]

    @property
    def num_images(self) -> int:
        """Number of images, copies not counted."""
        return len(self.shards) // (1 + self.copies)

    def __len__(self) -> int:
        """Return the number of latents, copies counted."""
        return len(self.shards)

    def __getitem__(self, j: int) -> dict[str, Any]:
        """Return {"array", "label"} and, if the set has them, "augment" (numbers,) and "conditions" (k,)."""
        sample = self.shards[j] | {"label": int(self.labels[j])}
        if self.copies:
            sample["augment"] = np.asarray(sample["meta"]["augment"], dtype=np.float32)
        elif self.augmented:
            sample["augment"] = np.zeros(augment.SIZE, dtype=np.float32)
        if self.conditions is not None:
            sample["conditions"] = self.conditions[j // (1 + self.copies)]
        return sample


class CopyOrder:
    """Position -> item of `LatentSet`s one behind the other: each image as it is or as one of its copies.

    So copies change neither the length of an epoch nor the balance of classes and recordings.

    Args:
        order: position -> image, copies not counted.
        sets: (images, augmented copies of each) of every set.
        seed: decides the copies.
        probability: share of positions at which a copy is shown, any of them alike.
    """

    def __init__(self, order: Order, sets: Sequence[tuple[int, int]], seed: int, probability: float):
        self.order, self.seed, self.probability = order, seed, probability
        self.num_samples, self.version = order.num_samples, order.version
        images, self.copies = (np.array(numbers) for numbers in zip(*sets, strict=True))
        self.images = np.cumsum(images) - images  # the first image of each set
        self.items = np.cumsum(images * (1 + self.copies)) - images * (1 + self.copies)  # and the item that it is

    def index(self, position: int) -> int:
        """Return the item shown at a position >= 0."""
        (item,), (copies,) = self._items(np.array([self.order.index(position)]))
        rng = random_at(self.seed, STREAM_AUGMENT, position)
        if copies and rng.random() < self.probability:
            item += 1 + rng.integers(copies)
        return int(item)

    def reading_order(self, positions: np.ndarray) -> np.ndarray:
        """Return numbers that sort ascending positions (n,); the copies of an image lie beside it."""
        return self.order.reading_order(positions)

    def _items(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the items that images are themselves, and how many copies each has."""
        of = np.searchsorted(self.images, images, side="right") - 1
        return self.items[of] + (images - self.images[of]) * (1 + self.copies[of]), self.copies[of]
