"""Validation by what is sampled: the Fréchet distance of generated to validation images, on all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mdaug import distributed
from mdaug.measures.features import RANDOM_FEATURES, extract, random_network
from mdaug.measures.fidelity import frechet_distance
from shards.dataset import ShardDataset

MOST_IMAGES = 8192  # of the validation set that samples are compared with
AT_ONCE = 256  # images in memory


class SampledDistance:
    """Fréchet distance in the features of a fixed random network (64, no labels, no training).

    Labels are those of validation images spread evenly over the split; sample i has a noise of its own, the same at
    every validation, so that the figure moves with the weights alone. It depends on the number of samples.

    Args:
        images: the validation images.
        count: samples to make, divided over the ranks.
        seed: sample i takes its noise from seed + i.
    """

    def __init__(self, images: ShardDataset, count: int, seed: int):
        self.images, self.count, self.seed = images, count, seed
        self.labels = images.labels[np.arange(count) * len(images) // count].tolist()
        self.network = random_network(images.index["image_shape"][2])
        self._real: np.ndarray | None = None

    def measure(self, pipeline: Any, num_inference_steps: int, batch_size: int) -> float:
        """Return the distance of samples of a `MicroDopplerPipeline` on this rank's device; every rank calls it."""
        ranks, device = distributed.world_size(), distributed.device()
        mine = range(distributed.rank(), self.count, ranks)
        # All ranks give equally many rows; a row that some have too many stays empty and is dropped.
        rows = torch.full((-(-self.count // ranks), RANDOM_FEATURES), float("nan"), dtype=torch.float64, device=device)
        for start in range(0, len(mine), batch_size):
            part = mine[start : start + batch_size]
            images = pipeline(
                [self.labels[i] for i in part],
                generator=[torch.Generator().manual_seed(self.seed + i) for i in part],
                num_inference_steps=num_inference_steps,
                output_type="np",
            ).images
            features = extract(self.network, np.rint(255 * images).astype(np.uint8))
            rows[start : start + len(part)] = torch.from_numpy(features)
        made = distributed.gather_over_ranks(rows).cpu().numpy()
        if self._real is None:
            self._real = self._features_of_images()
        return frechet_distance(self._real, made[np.isfinite(made).all(axis=1)])

    def _features_of_images(self) -> np.ndarray:
        """Return the features of at most MOST_IMAGES validation images, spread evenly; each rank extracts a part."""
        count, ranks = min(len(self.images), MOST_IMAGES), distributed.world_size()
        mine = range(distributed.rank(), count, ranks)
        device = distributed.device()
        rows = torch.full((-(-count // ranks), RANDOM_FEATURES), float("nan"), dtype=torch.float64, device=device)
        for start in range(0, len(mine), AT_ONCE):
            part = [self.images[i * len(self.images) // count]["image"] for i in mine[start : start + AT_ONCE]]
            rows[start : start + len(part)] = torch.from_numpy(extract(self.network, np.stack(part)))
        features = distributed.gather_over_ranks(rows).cpu().numpy()
        return features[np.isfinite(features).all(axis=1)]
