"""Random subsets of so many samples of each class, nested: `mdaug pack` and `mdaug evaluate` take the same ones."""

from __future__ import annotations

import numpy as np


def take_per_class(labels: np.ndarray, count: int | list[int], seed: int) -> np.ndarray:
    """Return sorted indices of at most `count` samples of each class (or `count[c]` of class c), drawn by `seed`.

    The samples of a number are among those of every larger one.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        number = count if isinstance(count, int) else count[label]
        chosen.append(np.random.default_rng([seed, int(label)]).permutation(members)[:number])
    return np.sort(np.concatenate(chosen))
