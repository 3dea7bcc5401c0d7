"""Pictures that are there twice: by their pixels, and by what they look like (the same picture saved again as JPEG)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial import cKDTree

from shards.image_to_png import Checked
from shards.source import SourceImage

NEAR = 24.0  # distance of two thumbnails (256 grey levels): 1.5 levels rms; JPEG of quality 75 stays below
FLAT = 2.0  # standard deviation of a thumbnail below which pictures show nothing, and all look alike
PROJECTIONS = 12  # directions in which neighbours are looked for before thumbnails are compared
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


def look_alike(
    images: Sequence[SourceImage], checked: Mapping[str, Checked], side: Mapping[str, str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs of paths that look the same and lie (in different classes, in different splits).

    Compared are thumbnails of 16 x 16 levels; pictures that show nothing are left out. The time grows as n log n while
    few pictures look alike.

    Args:
        images: the images that are packed.
        checked: path -> what the image is.
        side: path -> "train", "val" or "test".
    """
    thumbnails = np.array([np.frombuffer(checked[image.path].thumbnail, np.uint8) for image in images], np.float32)
    if len(thumbnails) < 2:
        return [], []
    shown = np.flatnonzero(thumbnails.std(axis=1) >= FLAT)
    # A projection onto orthonormal directions brings no two pictures further apart.
    directions, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((thumbnails.shape[1], PROJECTIONS)))
    tree = cKDTree(thumbnails[shown] @ directions.astype(np.float32))
    near = shown[tree.query_pairs(NEAR, output_type="ndarray")]
    near = near[np.linalg.norm(thumbnails[near[:, 0]] - thumbnails[near[:, 1]], axis=1) <= NEAR]
    pairs = [(images[i], images[j]) for i, j in near.tolist()]
    classes = [(a.path, b.path) for a, b in pairs if a.class_name != b.class_name]
    splits = [(a.path, b.path) for a, b in pairs if a.class_name == b.class_name and side[a.path] != side[b.path]]
    return classes, splits
