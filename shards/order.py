"""Sample order and randomness as pure functions of (seed, position).

A run is one endless stream of sample positions 0, 1, 2, ... Position p shows sample
`EpochOrder.index(p)` and draws its randomness from `random_at(seed, stream, p)`, so what a sample
sees does not depend on ranks, workers, micro batch, or where a run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

# One Philox stream per purpose, named `STREAM_...` in the module that draws from it. The numbers are part of what a
# seed means: never reuse or renumber them (tests/unit/test_shards_order.py lists them all).
STREAM_ORDER, STREAM_AUXILIARY = 0, 8


def random_at(seed: int, stream: int, position: int) -> np.random.Generator:
    """Return the random generator of one position: a counter-based Philox keyed by (seed, stream).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, position]))


class Order(Protocol):
    """Position -> sample index."""

    num_samples: int
    """Positions of an epoch."""

    def index(self, position: int) -> int:
        """Return the sample index shown at a position >= 0."""


class EpochOrder:
    """Position -> sample index; every epoch is a permutation of all samples, so no sample is ever dropped."""

    def __init__(self, num_samples: int, seed: int, stream: int = STREAM_ORDER):
        self.num_samples = num_samples
        self.seed, self.stream = seed, stream
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> int:
        """Return the sample index in [0, num_samples) shown at a position >= 0."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._permutation = random_at(self.seed, self.stream, epoch).permutation(self.num_samples)
            self._epoch = epoch
        return int(self._permutation[offset])


class BalancedOrder:
    """Position -> sample index, such that classes of any size are shown equally often.

    Every C positions are a permutation of the C classes, and of each class its samples come in permutations. So up to
    any position two classes differ by at most one, and so do two samples of one class.

    Args:
        labels: the class of each sample.
        seed, stream: decide the permutations.
    """

    def __init__(self, labels: Sequence[int] | np.ndarray, seed: int, stream: int = STREAM_ORDER):
        self.num_samples = len(labels)
        self.seed, self.stream = seed, stream
        self.members = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
        self._drawn: dict[int, tuple[int, np.ndarray]] = {}

    def index(self, position: int) -> int:
        """Return the sample index in [0, num_samples) shown at a position >= 0."""
        turn, place = divmod(position, len(self.members))
        chosen = int(self._permutation(0, turn, len(self.members))[place])
        epoch, offset = divmod(turn, len(self.members[chosen]))
        return int(self.members[chosen][self._permutation(1 + chosen, epoch, len(self.members[chosen]))[offset]])

    def _permutation(self, of: int, number: int, size: int) -> np.ndarray:
        """Return permutation `number` of the classes (of = 0), or of the samples of class `of` - 1."""
        if of not in self._drawn or self._drawn[of][0] != number:
            place = number * (1 + len(self.members)) + of
            self._drawn[of] = number, random_at(self.seed, self.stream, place).permutation(size)
        return self._drawn[of][1]


class SharedOrder:
    """Position -> sample index over two sets one behind the other; the second has an exact share of the positions.

    Among the first p positions are floor(p x share) of the second set, so every batch whose size times the share is
    a whole number holds that many, and any other batch one more or less.

    Args:
        own: the order of the first set; an epoch ends when it has shown each of its samples once.
        others: that of the second one.
        first_other: samples of the first set, at which the indices of the second one begin.
        share: in (0, 1); taken as the decimal fraction that it is written as.
    """

    def __init__(self, own: Order, others: Order, first_other: int, share: float):
        self.own, self.others, self.first_other = own, others, first_other
        self.share = Fraction(str(share))
        self.num_samples = epoch_length(own.num_samples, share)

    def index(self, position: int) -> int:
        """Return the sample index shown at a position >= 0."""
        before = int(position * self.share)
        if int((position + 1) * self.share) > before:
            return self.first_other + self.others.index(before)
        return self.own.index(position - before)


def epoch_length(num_samples: int, share: float) -> int:
    """Return the positions in which `num_samples` are shown that have all but a share of the positions."""
    return math.ceil(num_samples / (1 - Fraction(str(share))))


class PositionDataset(Dataset):
    """A map-style dataset addressed by position: `transform(dataset[index(p)], p)`."""

    def __init__(self, dataset: Dataset, order: Order, transform: Callable[[dict, int], Any]):
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
