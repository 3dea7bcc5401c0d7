"""Mean, standard deviation and excess kurtosis of latents, per channel."""

from __future__ import annotations

import numpy as np


class LatentStatistics:
    """Sums of the first four powers of latents in fp64; the sums of parts add up."""

    def __init__(self) -> None:
        self.count = 0
        self.powers: np.ndarray | float = 0.0

    def add(self, latents: np.ndarray) -> None:
        """Add latents (..., C, h, w)."""
        pixels = np.moveaxis(latents, -3, 0).reshape(latents.shape[-3], -1).astype(np.float64)
        self.merge({"count": pixels.shape[1], "powers": [(pixels**power).sum(1) for power in (1, 2, 3, 4)]})

    def as_dict(self) -> dict:
        """Return what the sidecar of a shard stores: the latent pixels and the sums, (4, C)."""
        return {"count": self.count, "powers": np.asarray(self.powers).tolist()}

    def merge(self, part: dict) -> None:
        """Add what `as_dict` returned."""
        self.count += part["count"]
        self.powers = self.powers + np.asarray(part["powers"])

    def figures(self) -> dict[str, list[float]]:
        """Return {"mean", "std", "excess_kurtosis"}, a value per channel; a normal distribution has kurtosis 0."""
        m1, m2, m3, m4 = np.asarray(self.powers) / self.count
        variance = np.maximum(m2 - m1**2, 0)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        kurtosis = fourth / np.maximum(variance, 1e-12) ** 2 - 3
        return {"mean": m1.tolist(), "std": np.sqrt(variance).tolist(), "excess_kurtosis": kurtosis.tolist()}
