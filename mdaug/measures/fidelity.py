"""Distances and shares between sets of images in features (n, d) of a network, beside the floor that real images set.

Sums are in float64. Images can carry weights, so that classes count the same however many images they have.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mdaug.measures.image_set import class_weights
from shards.subset import take_per_class

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as in Naeem et al.
CHUNK = 1024
MEASURES = ("frechet", "kid", "precision", "recall", "density", "coverage")


Weights = np.ndarray | None


def frechet_distance(
    first: np.ndarray, second: np.ndarray, first_weights: Weights = None, second_weights: Weights = None
) -> float:
    """Return the squared Fréchet distance between Gaussians fitted to two feature sets, (n, d) and (m, d), in fp64.

    Means and (unbiased) covariances are weighted where there are weights, (n,) and (m,).

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Dowson and Landau, J. Multivariate Analysis 12 (1982), eq. 4.
    The trace of the square root is that of the symmetric S1^(1/2) S2 S1^(1/2), whose eigenvalues are real and >= 0.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    cov1 = np.cov(first, rowvar=False, aweights=first_weights)
    cov2 = np.cov(second, rowvar=False, aweights=second_weights)
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0)).sum()
    shift = np.average(first, 0, first_weights) - np.average(second, 0, second_weights)
    return float(shift @ shift + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def kernel_distance(
    first: np.ndarray, second: np.ndarray, first_weights: Weights = None, second_weights: Weights = None
) -> float:
    """Return the kernel distance (KID): the unbiased estimate of the squared MMD, which may be below zero.

    Kernel (x . y / d + 1)^3 over all images at once. Binkowski et al., ICLR 2018; Gretton et al., JMLR 13 (2012),
    eq. 3. With weights a pair of images counts as the product of theirs.
    """
    first, second, d = first.astype(np.float64), second.astype(np.float64), first.shape[1]
    v, w = _or_ones(first_weights, first), _or_ones(second_weights, second)

    def kernel_sum(a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray) -> float:
        blocks = (slice(i, i + CHUNK) for i in range(0, len(a), CHUNK))
        return float(sum(of_a[block] @ ((a[block] @ b.T / d + 1) ** 3) @ of_b for block in blocks))

    def within(a: np.ndarray, of_a: np.ndarray) -> float:
        diagonal = float(of_a**2 @ (((a * a).sum(axis=1) / d + 1) ** 3))
        return (kernel_sum(a, a, of_a, of_a) - diagonal) / (of_a.sum() ** 2 - (of_a**2).sum())

    between = kernel_sum(first, second, v, w) / (v.sum() * w.sum())
    return float(within(first, v) + within(second, w) - 2 * between)


def manifold_shares(
    real: np.ndarray,
    other: np.ndarray,
    k: int = NEIGHBOURS,
    real_weights: Weights = None,
    other_weights: Weights = None,
) -> dict[str, float]:
    """Return precision, recall, density and coverage of `other` against `real`.

    A ball around each image reaches to its k-th nearest neighbour in its own set. precision: share of `other` within
    a ball of `real`; recall: share of `real` within a ball of `other` (Kynkäänniemi et al., NeurIPS 2019). density:
    balls of `real` around an image of `other`, over k; coverage: share of the balls of `real` that hold an image of
    `other` (Naeem et al., ICML 2020, eq. 4-5). Both sets need more than k images. Shares are those of the weights,
    where there are any.
    """
    reach_real, reach_other = _reach(real, k), _reach(other, k)
    of_real, of_other = _or_ones(real_weights, real), _or_ones(other_weights, other)
    within, recalled, covered = np.zeros(len(other)), np.zeros(len(real)), np.zeros(len(real))
    for start, between in _distances(real, other):
        rows = slice(start, start + CHUNK)
        within += (between < reach_real[rows, None]).sum(axis=0)
        recalled[rows] = (between < reach_other).any(axis=1)
        covered[rows] = between.min(axis=1) < reach_real[rows]
    return {
        "precision": float(of_other @ (within > 0) / of_other.sum()),
        "recall": float(of_real @ recalled / of_real.sum()),
        "density": float(of_other @ within / (k * of_other.sum())),
        "coverage": float(of_real @ covered / of_real.sum()),
    }


def with_floor(
    train: np.ndarray,
    train_labels: np.ndarray,
    held_out: np.ndarray,
    held_out_labels: np.ndarray,
    synthetic: np.ndarray,
    synthetic_labels: np.ndarray,
) -> dict:
    """Return every measure of synthetic against training images, beside that of held-out images (the floor).

    Estimates depend on the size of the sets, so both take equally many images of each class, and only the two
    figures beside each other mean something. Of the training images those of the same classes count, and in all three
    sets every class weighs the same. Features are (n, d).

    Returns:
        {"size", "synthetic": {measure: figure}, "floor": {...}}; both are None with too few images to match.
    """
    mine, others = matched(held_out_labels, synthetic_labels)
    common = np.isin(train_labels, held_out_labels[mine])
    train, train_labels = train[common], train_labels[common]
    if min(len(mine), len(train)) <= NEIGHBOURS:
        return {"size": len(mine), "synthetic": None, "floor": None}
    return {
        "size": len(mine),
        "synthetic": _measures(train, train_labels, synthetic[others], synthetic_labels[others]),
        "floor": _measures(train, train_labels, held_out[mine], held_out_labels[mine]),
    }


def matched(first_labels: np.ndarray, second_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices into two sets that take equally many images of each class, as many as both have."""
    classes = int(max(first_labels.max(), second_labels.max())) + 1
    counts = np.minimum(*(np.bincount(labels, minlength=classes) for labels in (first_labels, second_labels))).tolist()
    return take_per_class(first_labels, counts, seed=0), take_per_class(second_labels, counts, seed=0)


def _measures(
    train: np.ndarray, train_labels: np.ndarray, other: np.ndarray, other_labels: np.ndarray
) -> dict[str, float]:
    weights = class_weights(train_labels), class_weights(other_labels)
    distances = {
        "frechet": frechet_distance(train, other, *weights),
        "kid": kernel_distance(train, other, *weights),
    }
    return {**distances, **manifold_shares(train, other, NEIGHBOURS, *weights)}


def _or_ones(weights: Weights, points: np.ndarray) -> np.ndarray:
    return np.ones(len(points)) if weights is None else weights


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
