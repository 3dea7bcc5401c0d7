"""The pictures of the report: tiles of one size, put side by side and named."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mdaug.images import drawable, font, grid
from mdaug.measures.image_set import ImageSet
from shards.writer import disk_full_as_user_error

GRID, RECONSTRUCTION, PAIRS = "grid_real_synthetic.png", "reconstruction.png", "nearest_pairs.png"
TILE = 128  # pixels
PER_SIDE = 4
GAP, HEADING, SPACE = 4, 24, 16  # pixels


def real_and_synthetic(real: ImageSet, synthetic: ImageSet) -> np.ndarray:
    """Return one RGB picture with a row per class: held-out real images at the left, synthetic ones at the right."""
    classes = real.dataset.classes
    left, right = ([_examples(images, label) for label in range(len(classes))] for images in (real, synthetic))
    sides = [_headed(left, classes, ["real, held out"]), _headed(right, [], ["synthetic"])]
    space = np.full((len(sides[0]), SPACE, 3), 255, dtype=np.uint8)
    return np.concatenate([sides[0], space, sides[1]], axis=1)


def halves(path: Path, rows: Iterable[int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield rows of a saved `real_and_synthetic` as two PNGs, its real and its synthetic images, without names."""
    sheet, width = Image.open(path), PER_SIDE * (TILE + GAP)
    right = sheet.width - width
    left = right - SPACE - width
    for row in rows:
        top = HEADING + row * (TILE + GAP)
        real, synthetic = (_png(sheet.crop((x, top, x + width - GAP, top + TILE))) for x in (left, right))
        yield real, synthetic


def strip(path: Path, rows: Sequence[int]) -> bytes:
    """Return some rows of a saved picture of `strips` as a PNG, under its headings."""
    sheet = Image.open(path)
    chosen = Image.new("RGB", (sheet.width, HEADING + len(rows) * (TILE + GAP)), "white")
    chosen.paste(sheet.crop((0, 0, sheet.width, HEADING)))
    for place, row in enumerate(rows):
        top, height = HEADING + row * (TILE + GAP), TILE + GAP
        chosen.paste(sheet.crop((0, top, sheet.width, top + height)), (0, HEADING + place * height))
    return _png(chosen)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def strips(rows: Sequence[Sequence[np.ndarray]], classes: dict[str, dict]) -> np.ndarray:
    """Return original | reconstruction | difference, a row per class with its worst SSIM, see `reconstruct.measure`."""
    worst = (f"{figures['ssim']['worst']:.2f}" for figures in classes.values())
    labels = [f"{name} ({score})" for name, score in zip(drawable(list(classes)), worst, strict=True)]
    tiles = [[_tile(image) for image in row] for row in rows]
    return _headed(tiles, labels, ["original", "reconstruction", "difference"])


def pairs(synthetic: ImageSet, train: ImageSet, memory: dict) -> np.ndarray:
    """Return the nearest pairs of `memorization.compare`: each synthetic image beside its training image, shifted.

    A row holds two pairs, so that the picture stays readable on a narrow screen; distances are at the left.
    """
    tiles: list[list[np.ndarray]] = []
    for (i, j), shift in zip(memory["pairs"], memory["shifts"], strict=True):
        nearest = train.picture(j)
        moved = np.roll(nearest, round(shift * nearest.shape[1]), axis=1)
        tiles.append([_tile(synthetic.picture(i)), _tile(moved)])
    labels = [f"{distance:.1f}" for distance in memory["distances"]]
    rows = [[tile for pair in tiles[k : k + 2] for tile in pair] for k in range(0, len(tiles), 2)]
    names = [", ".join(labels[k : k + 2]) for k in range(0, len(labels), 2)]
    return _headed(rows, names, ["synthetic", "training", "synthetic", "training"][: len(rows[0])])


def save(path: Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG."""
    with disk_full_as_user_error(path):
        Image.fromarray(picture).save(path, optimize=True)


def _examples(images: ImageSet, label: int) -> list[np.ndarray]:
    """Return PER_SIDE tiles spread evenly over the images of a class; white ones where there are fewer."""
    members = np.flatnonzero(images.labels == label)
    spread = np.linspace(0, len(members) - 1, min(PER_SIDE, len(members))).astype(int)
    tiles = [_tile(images.picture(int(i))) for i in members[spread]]
    return tiles + [_white()] * (PER_SIDE - len(tiles))


def _tile(image: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, C) as (128, 128, 3); small images keep their pixels as squares."""
    method = Image.Resampling.NEAREST if max(image.shape) < TILE else Image.Resampling.BILINEAR
    picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
    return np.asarray(picture.resize((TILE, TILE), method))


def _white() -> np.ndarray:
    return np.full((TILE, TILE, 3), 255, dtype=np.uint8)


def _headed(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], headings: Sequence[str]) -> np.ndarray:
    """Return the grid of the rows with a line of headings above the first columns."""
    sheet = grid(rows, labels, gap=GAP)
    picture = Image.new("RGB", (sheet.shape[1], sheet.shape[0] + HEADING), "white")
    picture.paste(Image.fromarray(sheet), (0, HEADING))
    draw = ImageDraw.Draw(picture)
    left = sheet.shape[1] - len(rows[0]) * (TILE + GAP)
    for column, text in enumerate(headings):
        place = (left + column * (TILE + GAP), HEADING // 2)
        draw.text(place, text, fill="black", font=font(16), anchor="lm")
    return np.asarray(picture)
