"""How unlike each other the images of a class are: multi-scale SSIM of pairs within it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from mdaug.evaluation.data import ImageSet
from mdaug.evaluation.reconstruction import RADIUS, ssim_parts

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
PAIRS = 100


def ms_ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the multi-scale structural similarity, (n,), of image pairs (n, C, H, W) with values 0 to 255.

    Wang, Simoncelli and Bovik, Asilomar 2003, eq. 7, over as many of the five scales as the image holds windows of
    11 x 11 for, the weights scaled to a sum of 1: three scales at 64 pixels. Negative terms count as 0.
    """
    scales = sum(min(first.shape[-2:]) >> i > 2 * RADIUS for i in range(len(WEIGHTS)))
    weights = torch.tensor(WEIGHTS[:scales], dtype=torch.float64) / sum(WEIGHTS[:scales])
    a, b, terms = first.double(), second.double(), []
    for scale in range(scales):
        luminance, contrast = ssim_parts(a, b)
        term = luminance * contrast if scale == scales - 1 else contrast
        terms.append(term.mean(dim=(2, 3)).clamp(min=0))
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return (torch.stack(terms, dim=-1) ** weights).prod(dim=-1).mean(dim=-1)


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
