"""Pictures that look the same: all pairs are found, and a set where everything does fits into memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from shards.duplicates import NEAR, look_alike
from shards.image_to_png import Checked
from shards.source import SourceImage


def thumbnails(levels: np.ndarray, classes: int) -> tuple[list[SourceImage], dict[str, Checked]]:
    """Return images with these thumbnails uint8 (N, 256)."""
    images = [SourceImage(path=f"{n:05}.png", class_name=f"c{n % classes}", key=str(n)) for n in range(len(levels))]
    return images, {image.path: Checked("", thumbnail=row.tobytes()) for image, row in zip(images, levels, strict=True)}


@pytest.mark.parametrize("count", [0, 1, 2, 300, 700])
def test_the_pairs_are_those_of_all_distances(count):
    rng = np.random.default_rng(count)
    base = rng.integers(0, 256, (max(1, count // 5), 256))
    levels = (base[rng.integers(0, len(base), count)] + rng.normal(0, 1.0, (count, 256))).clip(0, 255).astype(np.uint8)
    levels[::7] = 40  # shows nothing
    images, checked = thumbnails(levels, 3)
    side = {image.path: "val" if n % 4 == 0 else "train" for n, image in enumerate(images)}
    distances = np.linalg.norm(levels[:, None].astype(float) - levels, axis=2)
    near = [(i, j) for i, j in np.argwhere(np.triu(distances <= NEAR, 1)) if i % 7 and j % 7]
    other_class = [(i, j) for i, j in near if i % 3 != j % 3]
    other_side = [(i, j) for i, j in near if i % 3 == j % 3 and (i % 4 == 0) != (j % 4 == 0)]
    classes, splits = look_alike(images, checked, side)
    assert (classes.count, splits.count) == (len(other_class), len(other_side))
    for found, pairs in ((classes, other_class), (splits, other_side)):
        names = {frozenset((images[i].path, images[j].path)) for i, j in pairs}
        assert not names or frozenset(found.first) in names
        assert count < 300 or len(names) > 20


def test_a_set_where_everything_looks_the_same_fits_into_memory():
    rng = np.random.default_rng(0)
    levels = (rng.integers(30, 200, 256) + rng.integers(0, 2, (1200, 256))).astype(np.uint8)
    images, checked = thumbnails(levels, 2)
    tracemalloc.start()
    classes, _ = look_alike(images, checked, {image.path: "train" for image in images})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert classes.count == 600 * 600
    assert peak < 100e6  # all pairs of thumbnails at once are 0.7 GB
