"""Levels of spectrograms: read from any colours, and compared as histograms, noise floor and mean profiles."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import stats

from mdaug.measures.image_set import ImageSet, class_weights
from shards.colormap import COLORMAPS, colormap

GRAY, BRIGHTNESS = "gray", "brightness"
MOST_ROWS = 128  # finer pictures are averaged: the widths of real Doppler lines are coarser than a row of these
ON_PALETTE = 30.0  # RGB units; JPEG pictures in jet lie about 23 from the map, pictures in maps unlike it 100
ENOUGH = 20  # training images from which the palette is recognised
FLOOR = 13  # levels up to this, 5 % of the range, count as floor
BINS = 32


def palette(train: ImageSet) -> str:
    """Return how the training images show power: "gray", a name of `shards.colormap.COLORMAPS`, or "brightness".

    The map is the one whose colours are nearest. "brightness" is for images that are near none of them: three equal
    channels, and maps in which brightness rises with power (hot, magma).
    """
    if train.images.shape[-1] == 1:
        return GRAY
    spread = np.linspace(0, len(train.labels) - 1, min(ENOUGH, len(train.labels))).astype(int)
    pictures = [train.original(int(i)) for i in spread]
    distances = {name: np.mean([colormap(name).distance(one).mean() for one in pictures]) for name in COLORMAPS}
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] < ON_PALETTE else BRIGHTNESS


def to_levels(picture: np.ndarray, name: str) -> np.ndarray:
    """Return uint8 (H, W, C) as uint8 (H, W), 255 the most power, through the inverse of a palette of `palette`."""
    if name == GRAY:
        return picture[..., 0]
    if name == BRIGHTNESS:
        return np.asarray(Image.fromarray(picture).convert("L"))
    return colormap(name).invert(picture)


def stack(images: ImageSet, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the levels of a set, uint8 (n, h, w): `size`, or as stored but at most 128 rows and columns."""
    height, width, _ = images.original(0).shape
    rows, columns = size or (min(height, MOST_ROWS), min(width, MOST_ROWS))
    pictures = (to_levels(images.original(i), name) for i in range(len(images.labels)))
    resized = (Image.fromarray(picture).resize((columns, rows), Image.Resampling.BOX) for picture in pictures)
    return np.stack([np.asarray(picture) for picture in resized])


def off_palette(images: ImageSet, name: str) -> np.ndarray:
    """Return the mean distance of the colours of each image, (n,) in RGB units, from a map: a colour shift raises it.

    Args:
        images: in colours.
        name: of the map, one of COLORMAPS.
    """
    return np.array([float(colormap(name).distance(images.original(i)).mean()) for i in range(len(images.labels))])


def summarize(levels: np.ndarray, labels: np.ndarray) -> dict:
    """Return figures of the levels of a set, uint8 (n, H, W); all classes weigh the same.

    Returns:
        "floor_share": mean share of pixels within 5 % of the bottom of the range; "dynamic_range": mean over images
        of the 99th percentile minus the median, as a share of the range; "histogram": share of pixels in 32 bins of
        level; "doppler": mean level of 32 bands of rows (fewer where there are fewer rows), highest velocity first;
        "time": of bands of columns.
    """
    flat = levels.reshape(len(levels), -1)
    top, middle = np.quantile(flat, 0.99, axis=1), np.median(flat, axis=1)
    weights = class_weights(labels)
    mean = sum(weight * image.astype(np.float64) for weight, image in zip(weights, levels, strict=True)) / 255
    shares = (
        sum(weight * np.histogram(image, BINS, (0, 256))[0] for weight, image in zip(weights, flat, strict=True))
        / flat.shape[1]
    )
    return {
        "floor_share": float(weights @ (flat <= FLOOR).mean(axis=1)),
        "dynamic_range": float(weights @ (top - middle) / 255),
        "histogram": shares.tolist(),
        "doppler": _profile(mean.mean(axis=1)),
        "time": _profile(mean.mean(axis=0)),
    }


def _profile(course: np.ndarray) -> list[float]:
    return [float(part.mean()) for part in np.array_split(course, min(BINS, len(course)))]


def histogram_distance(first: dict, second: dict) -> float:
    """Return the Wasserstein distance between the level histograms of two results, as a share of the range."""
    centres = (np.arange(BINS) + 0.5) / BINS
    return float(stats.wasserstein_distance(centres, centres, first["histogram"], second["histogram"]))
