"""`--batch_size auto`: the largest micro batch that fits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils import find_executable_batch_size

from mdaug import distributed
from mdaug.training.cost import Workload, memory, sharding
from mdaug.training.options import TrainingConfig

CPU_BATCH = 16  # --batch_size auto without a GPU: larger ones gain little there
LARGEST_BATCH = 256


def choose_batch_size(config: TrainingConfig, num_samples: int, load: Workload, rehearse: Callable[[int], None]) -> int:
    """Return the micro batch of `--batch_size auto`, the same on all ranks; every rank calls it.

    On a GPU the largest candidate whose forward and backward pass fits beside weights, gradients and the optimizer's
    states, found by trying; on a CPU the largest up to 16.

    Args:
        config: options of the training.
        num_samples: samples of the training set.
        load: counted for a micro batch of any size.
        rehearse: runs a forward and a backward pass of so many samples.
    """
    device = distributed.device()
    if device.type == "cpu":
        return candidates(config, num_samples, CPU_BATCH)[0]
    states = memory(load, sharding(config)).networks

    def attempt(size: int) -> None:
        held = torch.empty(states, dtype=torch.uint8, device=device)
        try:
            rehearse(size)
        finally:
            del held

    found = first_that_fits(candidates(config, num_samples, LARGEST_BATCH), attempt)
    return int(distributed.gather_over_ranks(torch.tensor([found], device=device)).min())


def candidates(config: TrainingConfig, num_samples: int, largest: int) -> list[int]:
    """Return micro batches up to `largest`, falling: divisors of a given global batch, else powers of two."""
    ranks = distributed.world_size()
    largest = max(1, min(largest, num_samples // ranks))
    if config.global_batch_size is not None:
        share = config.global_batch_size // ranks
        return [size for size in range(min(share, largest), 0, -1) if share % size == 0] or [1]
    return [1 << power for power in range(largest.bit_length() - 1, -1, -1)]


def first_that_fits(sizes: list[int], attempt: Callable[[int], None]) -> int:
    """Return the first of falling sizes that does not run out of memory (accelerate's find_executable_batch_size)."""
    remaining = iter(sizes[1:])

    @find_executable_batch_size(starting_batch_size=sizes[0], reduce_batch_size_fn=lambda: next(remaining, 0))
    def run(batch_size: int) -> int:
        attempt(batch_size)
        return batch_size

    return run()
