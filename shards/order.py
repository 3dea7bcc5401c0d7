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


# Shards whose samples are shuffled together. Twice as many stay open (shards/dataset.py): for two sets that are read in
# turn, and for the steps from one window to the next.
WINDOW = 128


def random_at(seed: int, stream: int, position: int, part: int = 0) -> np.random.Generator:
    """Return the random generator of one position, or of a part of it: a counter-based Philox keyed by (seed, stream).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, part, position]))


class Order(Protocol):
    """Position -> sample index."""

    num_samples: int
    """Positions of an epoch."""
    version: int
    """1: all samples are shuffled at once, as ever; 2: in windows of shards. A run keeps to the one it began with."""

    def index(self, position: int) -> int:
        """Return the sample index shown at a position >= 0."""

    def reading_order(self, positions: np.ndarray) -> np.ndarray:
        """Return numbers by which ascending positions (n,) are sorted so that few shards are open at a time."""


class EpochOrder:
    """Position -> sample index; every epoch is a permutation of all samples, so no sample is ever dropped.

    An epoch shuffles the shards, takes `window` of them at a time and shuffles the samples of these. So a reader needs
    that many open shards, whatever the size of the set, and the permutation of one window in memory, not that of the
    epoch. A set of no more shards is shuffled as a whole.

    Args:
        counts: samples of each shard in the order of the indices; one number for a set without shards.
        seed, stream: decide the permutations.
        window: shards.
        lane: (l, lanes): draws of lane l never meet those of another lane of the same seed and stream.
    """

    def __init__(
        self,
        counts: int | Sequence[int] | np.ndarray,
        seed: int,
        stream: int = STREAM_ORDER,
        *,
        window: int = WINDOW,
        lane: tuple[int, int] = (0, 1),
    ):
        self.counts = np.atleast_1d(np.asarray(counts, dtype=np.int64))
        self.first = np.cumsum(self.counts) - self.counts
        self.num_samples = int(self.counts.sum())
        self.seed, self.stream, self.lane, self.window = seed, stream, lane, window
        self.windows = -(-len(self.counts) // window)
        self.version = 1 if self.windows <= 1 else 2
        # The window in memory: its epoch, its number there, the offsets in the epoch that it shows, and their samples.
        self._epoch, self._number, self._begin, self._end = -1, 0, 0, 0
        self._shown = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> int:
        """Return the sample index in [0, num_samples) shown at a position >= 0."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch or not self._begin <= offset < self._end:
            self._shuffle(epoch, offset)
        return int(self._shown[offset - self._begin])

    def reading_order(self, positions: np.ndarray) -> np.ndarray:
        """Return numbers that sort ascending positions (n,) by window, and in it by sample, int64 (n,)."""
        numbers, done = np.empty(len(positions), dtype=np.int64), 0
        while done < len(positions):
            self.index(int(positions[done]))
            start = self._epoch * self.num_samples
            stop = int(np.searchsorted(positions, start + self._end))
            samples = self._shown[positions[done:stop] - start - self._begin]
            numbers[done:stop] = self.window_number * self.num_samples + samples
            done = stop
        return numbers

    @property
    def window_number(self) -> int:
        """The number of the window of the last position, counted through all epochs."""
        return self._epoch * self.windows + self._number

    def _shuffle(self, epoch: int, offset: int) -> None:
        """Hold the window that shows an offset of an epoch."""
        if epoch != self._epoch:
            shards = np.arange(len(self.counts))
            if self.windows > 1:
                self._random(epoch, self.windows).shuffle(shards)
            self._shards, self._ends = shards, np.cumsum(self.counts[shards])
            self._epoch = epoch
        number = int(np.searchsorted(self._ends, offset, side="right")) // self.window
        own = slice(number * self.window, (number + 1) * self.window)
        self._number = number
        self._begin = int(self._ends[own.start - 1]) if number else 0
        self._end = int(self._ends[own][-1])
        chosen = np.sort(self._shards[own])
        samples = np.concatenate([np.arange(self.first[i], self.first[i] + self.counts[i]) for i in chosen])
        self._shown = samples[self._random(epoch, number).permutation(len(samples))]

    def _random(self, epoch: int, part: int) -> np.random.Generator:
        lane, lanes = self.lane
        return random_at(self.seed, self.stream, epoch * lanes + lane, part)


class BalancedOrder:
    """Position -> sample index, such that classes of any size are shown equally often.

    Every C positions are a permutation of the C classes, and of each class its samples come in the order of an
    `EpochOrder`. So up to any position two classes differ by at most one, and so do two samples of one class.

    Args:
        labels: the class of each sample.
        seed, stream: decide the permutations.
        counts: samples of each shard; default: the set has no shards.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        seed: int,
        stream: int = STREAM_ORDER,
        counts: Sequence[int] | None = None,
    ):
        labels = np.asarray(labels)
        self.num_samples = len(labels)
        self.seed, self.stream = seed, stream
        small = np.uint32 if len(labels) < 2**32 else np.int64
        self.members = [np.flatnonzero(labels == label).astype(small) for label in np.unique(labels)]
        ends, lanes = np.cumsum([len(labels)] if counts is None else counts), 1 + len(self.members)
        self.orders = [
            EpochOrder(_held(of, ends), seed, stream, window=max(1, WINDOW // len(self.members)), lane=(lane, lanes))
            for lane, of in enumerate(self.members, 1)
        ]
        self.version = max((order.version for order in self.orders), default=1)
        self._turn, self._classes = -1, np.empty(0, dtype=np.int64)

    def index(self, position: int) -> int:
        """Return the sample index in [0, num_samples) shown at a position >= 0."""
        turn, place = divmod(position, len(self.members))
        if turn != self._turn:
            rng = random_at(self.seed, self.stream, turn * (1 + len(self.members)))
            self._turn, self._classes = turn, rng.permutation(len(self.members))
        chosen = int(self._classes[place])
        return int(self.members[chosen][self.orders[chosen].index(turn)])

    def reading_order(self, positions: np.ndarray) -> np.ndarray:
        """Return numbers that sort ascending positions (n,) by windows, and in these by sample, int64 (n,)."""
        numbers = []
        for position in positions.tolist():
            sample, chosen = self.index(position), int(self._classes[position % len(self.members)])
            numbers.append(self.orders[chosen].window_number * self.num_samples + sample)
        return np.array(numbers, dtype=np.int64)


def _held(members: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return how many of some samples, ascending, each shard with any of them holds."""
    held = np.diff(np.searchsorted(members, ends), prepend=0)
    return held[held > 0]


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
        self.version = max(own.version, others.version)

    def index(self, position: int) -> int:
        """Return the sample index shown at a position >= 0."""
        before = int(position * self.share)
        if int((position + 1) * self.share) > before:
            return self.first_other + self.others.index(before)
        return self.own.index(position - before)

    def reading_order(self, positions: np.ndarray) -> np.ndarray:
        """Return numbers that sort ascending positions (n,): the first set, then the second one, int64 (n,)."""
        share, of = self.share.as_integer_ratio()
        before = positions * share // of
        is_other = (positions + 1) * share // of > before
        numbers = np.empty(len(positions), dtype=np.int64)
        numbers[is_other] = self.others.reading_order(before[is_other]) + 2**62
        numbers[~is_other] = self.own.reading_order((positions - before)[~is_other])
        return numbers


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
    `micro_batch` positions that start at s B + (j world_size + r) micro_batch. With an order in windows of shards the
    positions of a global batch are dealt out sorted by their samples, so that a rank opens few of these shards.
    """

    def __init__(
        self,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        first_step: int,
        last_step: int,
        order: Order | None = None,
    ):
        self.order = order if order is not None and order.version > 1 else None
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
            positions = np.arange(step * self.global_batch, (step + 1) * self.global_batch)
            if self.order is not None:
                positions = positions[np.argsort(self.order.reading_order(positions))]
            for start in range(self.rank * self.micro_batch, self.global_batch, stride):
                yield positions[start : start + self.micro_batch].tolist()
