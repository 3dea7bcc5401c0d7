"""From a latent and its position to what the diffusion loss needs: noise, timestep and label drop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mdaug.training.ldm import LDMConfig
from mdaug.training.objective import TimestepLaw
from shards.order import STREAM_CONDITION_DROP, STREAM_LABEL_DROP, STREAM_NOISE, random_at

VALIDATION_SEED = 20_000_003  # validation noise is the same in every run, whatever its seed


class Diffuse:
    """Latent of a position -> network input and target ingredients; travels to the data loading workers.

    Noise, timestep, label drop and condition drop come from (seed, position) alone. A sample without its class is shown
    without its conditions, too: that is the unguided prediction of classifier-free guidance. Beyond that all conditions
    are dropped together, and each on its own: any of them may be left out when sampling.
    """

    def __init__(self, mean: list[float], std: list[float], config: LDMConfig, num_classes: int):
        self.mean = np.asarray(mean, dtype=np.float32)[:, None, None]
        self.std = np.asarray(std, dtype=np.float32)[:, None, None]
        self.seed, self.timesteps, self.law = config.seed, config.num_train_timesteps, TimestepLaw.of(config)
        self.label_dropout, self.null_label = config.label_dropout, num_classes
        self.condition_dropout = config.condition_dropout

    def __call__(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return {"latent": normalised, "noise", "timestep", "label"} of a training position, and "conditions" and
        "augment" where the sample has them."""
        dropped = random_at(self.seed, STREAM_LABEL_DROP, position).random() < self.label_dropout
        timestep = self.law.draw(position)
        item = self._item(sample, self.seed, position, timestep, self.null_label if dropped else sample["label"])
        if "augment" in sample:
            item["augment"] = sample["augment"]
        if "conditions" in item:
            draws = random_at(self.seed, STREAM_CONDITION_DROP, position).random(1 + len(item["conditions"]))
            hidden = draws < self.condition_dropout
            hidden = dropped | hidden[0] | hidden[1:]
            item["conditions"] = np.where(hidden, np.float32(np.nan), item["conditions"])
        return item

    def validation(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return the same with fixed noise and timesteps spread evenly over [0, T), and the label kept."""
        golden = (math.sqrt(5) - 1) / 2  # multiples of the golden ratio modulo 1 fill the interval evenly
        timestep = int((position * golden % 1) * self.timesteps)
        return self._item(sample, VALIDATION_SEED, position, timestep, sample["label"])

    def _item(self, sample: dict[str, Any], seed: int, position: int, timestep: int, label: int) -> dict[str, Any]:
        latent = (sample["array"] - self.mean) / self.std
        noise = random_at(seed, STREAM_NOISE, position).standard_normal(latent.shape, dtype=np.float32)
        item = {"latent": latent, "noise": noise, "timestep": timestep, "label": label}
        return {**item, "conditions": sample["conditions"]} if "conditions" in sample else item
