"""What reading a training set costs on many ranks: files, memory and bytes, counted from its sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

from shards.dataset import OPEN_MAPS
from shards.order import WINDOW

LABEL, PLACE = 2, 4  # bytes of a sample in samples-….npy, and of each field that its shards hold
SHARD = 600  # bytes of index.json that a process keeps for a shard (measured: benchmarks/scale.py)
NUMBER = 8  # bytes of a number in the arrays of an order


@dataclass(frozen=True)
class DataCost:
    """A set as it is read.

    Attributes:
        samples: of the set.
        samples_per_shard: of each shard.
        sample_bytes: that are read for a sample.
        fields: kinds of members, beside the label, that its shards hold.
    """

    samples: int
    samples_per_shard: int
    sample_bytes: int
    fields: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.samples_per_shard)

    @property
    def mapped(self) -> int:
        """Bytes of the file with label and place of every sample, which all processes of a machine share."""
        return self.samples * (LABEL + self.fields * PLACE)

    @property
    def index(self) -> int:
        """Bytes of the index in each rank; its workers share them."""
        return self.shards * SHARD

    @property
    def order(self) -> int:
        """Bytes of the order in each process: arrays over the shards, and a window of samples, thrice in a shuffle."""
        window = min(self.shards, WINDOW) * self.samples_per_shard
        return NUMBER * (4 * self.shards + 3 * min(self.samples, window))

    def open_files(self, workers: int) -> int:
        """Return the most shards that a rank has open at once, in all its workers."""
        return max(1, workers) * min(OPEN_MAPS, self.shards)

    def memory(self, workers: int) -> int:
        """Return the bytes that are a rank's own: the index, and an order in itself and in every worker."""
        return self.index + (1 + workers) * self.order
