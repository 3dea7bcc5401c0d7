"""Images of one set in memory, as every classifier sees them: one size, one codec, real and synthetic alike."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.colormap import paint
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.subset import take_per_class

# Real images may come from JPEG files, synthetic ones never do. One more pass through the same codec hides the traces
# of the first, so that no classifier can use them.
JPEG_QUALITY = 90
REAL_SHARDS = "real-"  # prefix of the shards that `mdaug generate --include_real` copies into a mixed set


@dataclass
class ImageSet:
    """A set of labelled images.

    Attributes:
        images: uint8 (n, size, size, C), C in {1, 3}, after `preprocess`.
        labels: int64 (n,), indices into `dataset.classes`.
        groups: n names of recordings (or persons); images of one group are not independent of each other.
        indices: int64 (n,), the position of each image in `dataset`.
        dataset: where the originals are.
        available: images from which these were chosen.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: list[str]
    indices: np.ndarray
    dataset: ShardDataset
    available: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def original(self, i: int) -> np.ndarray:
        """Return image i as stored: uint8 (H, W, C)."""
        return self.dataset[int(self.indices[i])]["image"]

    def picture(self, i: int) -> np.ndarray:
        """Return image i as it is looked at: levels of a colour map in its colours, uint8 (H, W, 3)."""
        return paint(self.original(i), self.dataset.index.get("colormap"))

    def subset(self, chosen: np.ndarray) -> ImageSet:
        """Return the images at the given positions, int64 (k,)."""
        groups = [self.groups[int(i)] for i in chosen]
        return replace(
            self, images=self.images[chosen], labels=self.labels[chosen], groups=groups, indices=self.indices[chosen]
        )

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.dataset.classes)).tolist()


def load(folder: Path, *, image_size: int, max_per_class: int) -> ImageSet:
    """Read a folder of image shards into memory.

    A class with more than `max_per_class` images is represented by that many, chosen at random but always the same.
    The real images of a mixed set (`mdaug generate --include_real`) are left out: they would be training images under
    another name.

    Raises:
        UserError: there is no image.
    """
    dataset = ShardDataset(folder, fields=("image", "meta"))
    shards = [np.arange(first, first + n) for name, first, n in dataset.shards if not name.startswith(REAL_SHARDS)]
    if not sum(map(len, shards)):
        raise UserError(f"{folder} holds no images to evaluate; make it again")
    usable = np.concatenate(shards)
    indices = usable[take_per_class(dataset.labels[usable], max_per_class, seed=0)]
    samples = [dataset[int(i)] for i in indices]
    return ImageSet(
        images=np.stack([preprocess(sample["image"], image_size) for sample in samples]),
        labels=dataset.labels[indices].astype(np.int64),
        groups=[str(sample["meta"].get("group", sample["key"])) for sample in samples],
        indices=indices,
        dataset=dataset,
        available=len(usable),
    )


def described(dataset: ShardDataset, i: int) -> tuple[str, dict[str, Any]]:
    """Return the path that sample i was packed from (its key, where that is not stored) and its metadata."""
    meta = json.loads(dataset.raw(i, "meta"))
    return str(meta.get("source", dataset.key(i))), meta


def preprocess(image: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 (H, W, C) as uint8 (size, size, C): resized with antialiasing, then once through JPEG (4:4:4)."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    resized.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return np.asarray(Image.open(buffer)).reshape(size, size, image.shape[-1])


def class_weights(labels: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Return weights of images, float64 (n,) with sum 1: all classes weigh the same, however many images they have.

    Args:
        labels: int64 (n,).
        among: labels of the classes that count (default: all); where none of them occurs, all classes count.
    """
    counts = np.bincount(labels)
    weights = 1 / counts[labels]
    counted = np.isin(labels, labels if among is None else among)
    weights = np.where(counted, weights, 0) if counted.any() else weights
    return weights / weights.sum()


def weighted_quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    """Return a quantile of weighted values (n,); with equal weights it is that of `np.quantile`.

    Linear between the sorted values x_1 ... x_n, where x_k is the quantile of S_k / S_n,
    S_k = (k - 1) w_k + (n - 1) (w_1 + ... + w_(k-1)).
    """
    values, weights = values[weights > 0], weights[weights > 0]
    order = np.argsort(values, kind="stable")
    values, weights, n = values[order], weights[order], len(values)
    places = np.arange(n) * weights + (n - 1) * (np.cumsum(weights) - weights)
    return float(np.interp(q, places / max(places[-1], 1e-300), values))
