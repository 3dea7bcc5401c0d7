"""Fréchet distance in the features of a classifier trained on the real training split, beside its floor."""

from __future__ import annotations

import numpy as np

from mdaug.evaluation.data import take_per_class


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


def frechet_with_floor(
    train: np.ndarray,
    held_out: np.ndarray,
    held_out_labels: np.ndarray,
    synthetic: np.ndarray,
    synthetic_labels: np.ndarray,
) -> dict:
    """Return the distances train - synthetic and train - held out (the floor), with equally many images of each class.

    The estimate grows as sets shrink, by about the same amount for sets of one size, so only the two figures beside
    each other mean something. Features are (n, d).

    Returns:
        {"synthetic", "floor", "size"}; the distances are None where fewer than two images can be matched.
    """
    classes = int(max(held_out_labels.max(), synthetic_labels.max())) + 1
    counts = np.minimum(
        np.bincount(held_out_labels, minlength=classes), np.bincount(synthetic_labels, minlength=classes)
    )
    size = int(counts.sum())
    if size < 2:
        return {"synthetic": None, "floor": None, "size": size}
    matched_held_out = held_out[take_per_class(held_out_labels, counts.tolist(), seed=0)]
    matched_synthetic = synthetic[take_per_class(synthetic_labels, counts.tolist(), seed=0)]
    return {
        "synthetic": frechet_distance(train, matched_synthetic),
        "floor": frechet_distance(train, matched_held_out),
        "size": size,
    }
