"""How unlike each other the images of a class are: multi-scale SSIM of pairs within it."""

from __future__ import annotations

import numpy as np
import torch

from mdaug.evaluation.data import ImageSet
from mdaug.evaluation.quality import ms_ssim

PAIRS = 100


def within_class(images: ImageSet, pairs: int = PAIRS) -> list[float | None]:
    """Return the mean MS-SSIM of random pairs of each class: higher is less diverse, 1 is one picture repeated.

    None for a class with fewer than two images.
    """
    figures: list[float | None] = []
    for label in range(len(images.dataset.classes)):
        members = np.flatnonzero(images.labels == label)
        if len(members) < 2:
            figures.append(None)
            continue
        rng = np.random.default_rng([label, len(members)])
        drawn = np.stack([rng.choice(members, 2, replace=False) for _ in range(pairs)])
        first, second = (torch.from_numpy(images.images[chosen]).movedim(-1, 1) for chosen in drawn.T)
        figures.append(float(ms_ssim(first, second).mean()))
    return figures
