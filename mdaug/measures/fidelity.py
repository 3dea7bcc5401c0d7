"""Distances and shares between sets of images in features (n, d) of a network, beside the floor that real images set.

Sums are in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mdaug.measures.image_set import take_per_class

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as in Naeem et al.
CHUNK = 1024
MEASURES = ("frechet", "kid", "precision", "recall", "density", "coverage")


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Fréchet distance between Gaussians fitted to two feature sets, (n, d) and (m, d), in fp64.

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Dowson and Landau, J. Multivariate Analysis 12 (1982), eq. 4.
    The trace of the square root is that of the symmetric S1^(1/2) S2 S1^(1/2), whose eigenvalues are real and >= 0.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    cov1, cov2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0)).sum()
    shift = first.mean(axis=0) - second.mean(axis=0)
    return float(shift @ shift + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the kernel distance (KID): the unbiased estimate of the squared MMD, which may be below zero.

    Kernel (x . y / d + 1)^3 over all images at once. Binkowski et al., ICLR 2018; Gretton et al., JMLR 13 (2012),
    eq. 3.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    n, m, d = len(first), len(second), first.shape[1]

    def kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
        parts = (((a[i : i + CHUNK] @ b.T / d + 1) ** 3).sum() for i in range(0, len(a), CHUNK))
        return float(sum(parts))

    def diagonal(a: np.ndarray) -> float:
        return float((((a * a).sum(axis=1) / d + 1) ** 3).sum())

    within = (kernel_sum(first, first) - diagonal(first)) / (n * (n - 1))
    within += (kernel_sum(second, second) - diagonal(second)) / (m * (m - 1))
    return within - 2 * kernel_sum(first, second) / (n * m)


def manifold_shares(real: np.ndarray, other: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """Return precision, recall, density and coverage of `other` against `real`.

    A ball around each image reaches to its k-th nearest neighbour in its own set. precision: share of `other` within
    a ball of `real`; recall: share of `real` within a ball of `other` (Kynkäänniemi et al., NeurIPS 2019). density:
    balls of `real` around an image of `other`, over k; coverage: share of the balls of `real` that hold an image of
    `other` (Naeem et al., ICML 2020, eq. 4-5). Both sets need more than k images.
    """
    reach_real, reach_other = _reach(real, k), _reach(other, k)
    within, recalled, covered = np.zeros(len(other)), 0, 0
    for start, between in _distances(real, other):
        reach = reach_real[start : start + CHUNK]
        within += (between < reach[:, None]).sum(axis=0)
        recalled += (between < reach_other).any(axis=1).sum()
        covered += (between.min(axis=1) < reach).sum()
    return {
        "precision": float((within > 0).mean()),
        "recall": float(recalled / len(real)),
        "density": float(within.sum() / (k * len(other))),
        "coverage": float(covered / len(real)),
    }


def with_floor(
    train: np.ndarray,
    held_out: np.ndarray,
    held_out_labels: np.ndarray,
    synthetic: np.ndarray,
    synthetic_labels: np.ndarray,
) -> dict:
    """Return every measure of synthetic against training images, beside that of held-out images (the floor).

    Estimates depend on the size of the sets, so both take equally many images of each class, and only the two
    figures beside each other mean something. Features are (n, d).

    Returns:
        {"size", "synthetic": {measure: figure}, "floor": {...}}; both are None with too few images to match.
    """
    mine, others = matched(held_out_labels, synthetic_labels)
    if min(len(mine), len(train)) <= NEIGHBOURS:
        return {"size": len(mine), "synthetic": None, "floor": None}
    return {
        "size": len(mine),
        "synthetic": _measures(train, synthetic[others]),
        "floor": _measures(train, held_out[mine]),
    }


def matched(first_labels: np.ndarray, second_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices into two sets that take equally many images of each class, as many as both have."""
    classes = int(max(first_labels.max(), second_labels.max())) + 1
    counts = np.minimum(*(np.bincount(labels, minlength=classes) for labels in (first_labels, second_labels))).tolist()
    return take_per_class(first_labels, counts, seed=0), take_per_class(second_labels, counts, seed=0)


def _measures(train: np.ndarray, other: np.ndarray) -> dict[str, float]:
    distances = {"frechet": frechet_distance(train, other), "kid": kernel_distance(train, other)}
    return {**distances, **manifold_shares(train, other)}


def _reach(points: np.ndarray, k: int) -> np.ndarray:
    """Return the distance of each point to its k-th nearest neighbour, itself not counted."""
    return np.concatenate([np.partition(rows, k, axis=1)[:, k] for _, rows in _distances(points, points)])


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (i, distances of the points a[i : i + CHUNK] to all of b): all at once do not fit into memory."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    energy = (b**2).sum(axis=1)
    for start in range(0, len(a), CHUNK):
        rows = a[start : start + CHUNK]
        squared = (rows**2).sum(axis=1)[:, None] + energy - 2 * rows @ b.T
        yield start, np.sqrt(squared.clip(min=0))
