"""The scalar behind a picture: grey levels of spectrograms, whatever colours they are kept in."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mdaug.evaluation.data import ImageSet
from shards.colormap import colormap

JET = "jet-256"
MOST_ROWS = 128  # finer pictures are averaged: the widths of real Doppler lines are coarser than a row of these
ON_PALETTE = 30.0  # RGB units; JPEG pictures in jet lie about 23 from the map, pictures in other maps 100
ENOUGH = 50  # pictures that tell the palette


def palette(train: ImageSet) -> str:
    """Return "gray", "jet" or "brightness": how the training images show power.

    "brightness" stands for colour maps other than jet; the common ones (viridis, parula, hot) rise in it.
    """
    if train.images.shape[-1] == 1:
        return "gray"
    spread = np.linspace(0, len(train.labels) - 1, min(ENOUGH, len(train.labels))).astype(int)
    distances = [colormap(JET).distance(train.original(int(i))).mean() for i in spread]
    return "jet" if np.mean(distances) < ON_PALETTE else "brightness"


def to_levels(picture: np.ndarray, name: str) -> np.ndarray:
    """Return uint8 (H, W, C) as uint8 (H, W), 255 the most power, through the inverse of a palette of `palette`."""
    if name == "gray":
        return picture[..., 0]
    if name == "jet":
        return colormap(JET).invert(picture)
    return np.asarray(Image.fromarray(picture).convert("L"))


def stack(images: ImageSet, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the levels of a set, uint8 (n, h, w): `size`, or as stored but at most 128 rows and columns."""
    height, width, _ = images.original(0).shape
    rows, columns = size or (min(height, MOST_ROWS), min(width, MOST_ROWS))
    pictures = (to_levels(images.original(i), name) for i in range(len(images.labels)))
    resized = (Image.fromarray(picture).resize((columns, rows), Image.Resampling.BOX) for picture in pictures)
    return np.stack([np.asarray(picture) for picture in resized])


def off_palette(images: ImageSet) -> np.ndarray:
    """Return the mean distance of the colours of each image, (n,) in RGB units, from jet: a colour shift raises it."""
    return np.array([float(colormap(JET).distance(images.original(i)).mean()) for i in range(len(images.labels))])
