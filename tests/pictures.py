"""Spectrogram-like pictures from formulas, so that the level behind every pixel is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.colormap import colormap


def ridge(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Return levels uint8 (height, width), another picture for each number: a bright Doppler track on a floor of 0."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(number)
    track = height / 2 + 0.3 * height * np.sin(2 * np.pi * x / width * rng.uniform(1, 6) + rng.uniform(0, 6))
    return (255 * np.exp(-(((y - track) / (height * 3 / 64)) ** 2))).astype(np.uint8)


def painted(levels: np.ndarray, name: str) -> np.ndarray:
    """Return levels (H, W) in the colours of a map, uint8 (H, W, 3)."""
    return colormap(name).palette[levels]


def framed(picture: np.ndarray, width: int = 2, value: int = 255) -> np.ndarray:
    """Return a picture whose outermost rows and columns have one value."""
    picture = picture.copy()
    picture[:width] = picture[-width:] = value
    picture[:, :width] = picture[:, -width:] = value
    return picture


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """Write an array as an image file of the format that its name says; options are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def two_classes(root: Path, count: int = 8, paint: str | None = None) -> Path:
    """Write root/fall and root/walk, `count` pictures each, four of a recording."""
    for name, first in (("fall", 0), ("walk", 9000)):
        for i in range(count):
            levels = ridge(first + i)
            save(root / name / f"r{i // 4}_{i:03d}.png", painted(levels, paint) if paint else levels)
    return root
