"""Pictures that are there twice: by their pixels, and by what they look like (the same picture saved again as JPEG)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shards.image_to_png import THUMB, Checked
from shards.source import SourceImage

NEAR = 24.0  # distance of two thumbnails (256 grey levels): 1.5 levels rms; JPEG of quality 75 stays below
FLAT = 2.0  # standard deviation of a thumbnail below which pictures show nothing, and all look alike
PROJECTIONS = 12  # directions in which neighbours are looked for before thumbnails are compared
ROUNDED = 8.0  # squared distances in them are right to so much in single precision
ROWS, PAIRS = 256, 16384  # pictures whose neighbours are looked for together, and pairs of thumbnails compared together
ORDER = {"test": 0, "val": 1, "train": 2, None: 3}  # of copies the one in the most held-out split stays


def suspects(checked: Mapping[str, Checked]) -> list[str]:
    """Return the paths of the pictures whose size and thumbnail others have, too: their pixels are to be compared."""
    alike: dict[tuple, list[str]] = defaultdict(list)
    for path, picture in checked.items():
        if picture.error is None:
            alike[picture.size, picture.thumbnail].append(path)
    return [path for paths in alike.values() if len(paths) > 1 for path in paths]


def equal(images: Sequence[SourceImage], checked: Mapping[str, Checked]) -> dict[str, str]:
    """Return path -> reason of the images that others repeat pixel by pixel.

    Of copies in one class one stays. Of copies in several classes none does: nobody can know which label is right.
    """
    copies: dict[str, list[SourceImage]] = defaultdict(list)
    for image in images:
        copies[checked[image.path].pixels or image.path].append(image)
    rejected = {}
    for group in copies.values():
        if len(group) == 1:
            continue
        if len({image.class_name for image in group}) > 1:
            for image in group:
                other = next(other for other in group if other.class_name != image.class_name)
                rejected[image.path] = f"in two classes: the same picture as {other.path}"
            continue
        first, *others = sorted(group, key=lambda image: ORDER[image.given_split])
        for image in others:
            what = "bytes" if checked[image.path].sha256 == checked[first.path].sha256 else "pixels"
            rejected[image.path] = f"same {what} as {first.path}"
    return rejected


@dataclass
class Pairs:
    """How many pairs of images look the same, and the paths of the first."""

    count: int = 0
    first: tuple[str, str] = ("", "")

    def add(self, images: Sequence[SourceImage], one: np.ndarray, other: np.ndarray) -> None:
        """Count pairs of images."""
        if len(one) and not self.count:
            self.first = (images[one[0]].path, images[other[0]].path)
        self.count += len(one)


def look_alike(
    images: Sequence[SourceImage], checked: Mapping[str, Checked], side: Mapping[str, str]
) -> tuple[Pairs, Pairs]:
    """Return the pairs that look the same and lie (in different classes, in different splits).

    Compared are thumbnails of 16 x 16 levels; pictures that show nothing are left out. The memory grows as n, whatever
    they look like. The time of the search grows as n squared, but stays a small part of reading the pictures: two
    seconds for 100,000.

    Args:
        images: the images that are packed.
        checked: path -> what the image is.
        side: path -> "train", "val" or "test".
    """
    classes, splits = Pairs(), Pairs()
    thumbnails = np.frombuffer(b"".join(checked[image.path].thumbnail for image in images), np.uint8)
    thumbnails = thumbnails.reshape(-1, THUMB**2).astype(np.float32)
    shown = np.flatnonzero(thumbnails.std(axis=1) >= FLAT)
    if len(shown) < 2:
        return classes, splits
    kind = np.unique([image.class_name for image in images], return_inverse=True)[1]
    of_split = np.unique([side[image.path] for image in images], return_inverse=True)[1]
    # A projection onto orthonormal directions brings no two pictures further apart: neighbours are looked for in the
    # directions of largest spread, among those near in the first.
    centred = thumbnails[shown] - thumbnails[shown].mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, : -PROJECTIONS - 1 : -1]
    projected = centred @ directions
    order = np.argsort(projected[:, 0])
    projected, shown = projected[order], shown[order]
    squares = (projected**2).sum(axis=1)
    ends = np.searchsorted(projected[:, 0], projected[:, 0] + NEAR, side="right")
    for start in range(0, len(shown), ROWS):
        rows, others = slice(start, start + ROWS), slice(start, ends[start : start + ROWS][-1])
        distances = squares[rows, None] + squares[others] - 2 * projected[rows] @ projected[others].T
        first, second = np.nonzero(np.triu(distances <= NEAR**2 + ROUNDED, 1))
        first, second = shown[rows][first], shown[others][second]
        for part in range(0, len(first), PAIRS):
            one, other = first[part : part + PAIRS], second[part : part + PAIRS]
            alike = np.linalg.norm(thumbnails[one] - thumbnails[other], axis=1) <= NEAR
            one, other = one[alike], other[alike]
            is_other = kind[one] != kind[other]
            classes.add(images, one[is_other], other[is_other])
            leaks = ~is_other & (of_split[one] != of_split[other])
            splits.add(images, one[leaks], other[leaks])
    return classes, splits
