"""Sample order and randomness as pure functions of (seed, position).

A run is one endless stream of sample positions 0, 1, 2, ... Position p shows sample
`EpochOrder.index(p)` and draws its randomness from `random_at(seed, stream, p)`, so what a sample
sees does not depend on ranks, workers, micro batch, or where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

# One Philox stream per purpose, named `STREAM_...` in the module that draws from it. The numbers are part of what a
# seed means: never reuse or renumber them (tests/unit/test_shards_order.py lists them all).
STREAM_ORDER = 0


def random_at(seed: int, stream: int, position: int) -> np.random.Generator:
    """Return the random generator of one position: a counter-based Philox keyed by (seed, stream).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, position]))


class EpochOrder:
    """Position -> sample index; every epoch is a permutation of all samples, so no sample is ever dropped."""

    def __init__(self, num_samples: int, seed: int):
        self.num_samples = num_samples
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> int:
        """Return the sample index in [0, num_samples) shown at a position >= 0."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._permutation = random_at(self.seed, STREAM_ORDER, epoch).permutation(self.num_samples)
            self._epoch = epoch
        return int(self._permutation[offset])


class PositionDataset(Dataset):
    """A map-style dataset addressed by position: `transform(dataset[index(p)], p)`."""

    def __init__(self, dataset: Dataset, order: EpochOrder, transform: Callable[[dict, int], Any]):
        self.dataset = dataset
        self.order = order
        self.transform = transform

    def __getitem__(self, position: int) -> Any:
        """Return the transformed sample of a position."""
        return self.transform(self.dataset[self.order.index(position)], position)


class PositionSampler(Sampler[list[int]]):
    """Yields the positions of one rank's micro batches, from one optimizer step to another.

    The global batch of step s is positions [s B, (s + 1) B). Micro batch j of rank r takes the
    `micro_batch` positions that start at s B + (j world_size + r) micro_batch.
    """

    def __init__(
        self, *, global_batch: int, micro_batch: int, rank: int, world_size: int, first_step: int, last_step: int
    ):
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size
        self.first_step = first_step
        self.last_step = last_step

    def __len__(self) -> int:
        """Return the number of micro batches of this rank."""
        return (self.last_step - self.first_step) * (self.global_batch // (self.micro_batch * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of `micro_batch` positions."""
        stride = self.micro_batch * self.world_size
        for step in range(self.first_step, self.last_step):
            start = step * self.global_batch + self.rank * self.micro_batch
            for micro in range(start, (step + 1) * self.global_batch, stride):
                yield list(range(micro, micro + self.micro_batch))
