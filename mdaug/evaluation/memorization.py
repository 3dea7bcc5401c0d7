"""Does the generator repeat its training images? Nearest-neighbour distances on small thumbnails."""

from __future__ import annotations

import numpy as np

from mdaug.evaluation.data import ImageSet

THUMBNAIL = 16
COPY = 1.0  # grey levels: nearer than this, the thumbnails of two 8-bit images are the same
CHUNK = 1024


def nearest(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each query image, the RMS distance in grey levels (0 to 255) to the nearest reference, and its index.

    Both are uint8 (n, S, S, C), S a multiple of 16, compared as averages over a 16 x 16 grid.
    """
    a, b = thumbnails(queries), thumbnails(references)
    squares = (b**2).sum(axis=1)
    distance, index = np.empty(len(a)), np.empty(len(a), dtype=np.int64)
    for start in range(0, len(a), CHUNK):
        block = a[start : start + CHUNK]
        squared = (block**2).sum(axis=1)[:, None] + squares - 2 * block @ b.T
        best = squared.argmin(axis=1)
        index[start : start + CHUNK] = best
        distance[start : start + CHUNK] = np.sqrt(squared[np.arange(len(block)), best].clip(min=0) / a.shape[1])
    return distance, index


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Return uint8 (n, S, S, C) as float64 (n, 256 C): means over the cells of a 16 x 16 grid."""
    n, size, _, channels = images.shape
    cell = size // THUMBNAIL
    return images.reshape(n, THUMBNAIL, cell, THUMBNAIL, cell, channels).mean(axis=(2, 4)).reshape(n, -1)


def memorization(train: ImageSet, held_out: ImageSet, synthetic: ImageSet, pairs: int = 6) -> dict:
    """Compare how near synthetic images and held-out real ones are to the training images.

    Returns:
        medians in grey levels; `threshold`, the 1st percentile of held-out distances; `share_closer`, the share of
        synthetic images below it (0.01 is expected of a generator that is as far from the training images as new
        recordings are); `copies` of both sets; `pairs`, the nearest (synthetic, train) indices.
    """
    to_synthetic, neighbour = nearest(synthetic.images, train.images)
    to_held_out, _ = nearest(held_out.images, train.images)
    threshold = float(np.quantile(to_held_out, 0.01))
    closest = np.argsort(to_synthetic, kind="stable")[:pairs]
    return {
        "synthetic_median": float(np.median(to_synthetic)),
        "held_out_median": float(np.median(to_held_out)),
        "threshold": threshold,
        "share_closer": float((to_synthetic < threshold).mean()),
        "synthetic_copies": int((to_synthetic < COPY).sum()),
        "held_out_copies": int((to_held_out < COPY).sum()),
        "pairs": [[int(i), int(neighbour[i])] for i in closest],
    }
