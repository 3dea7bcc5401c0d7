"""Validation over all ranks: the same number of forward passes on each, every sample counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import default_collate

from mdaug import distributed


def validation_batches(
    sample: Callable[[int], dict[str, Any]], count: int, batch_size: int
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Yield (batch, weight) of this rank over samples 0 ... count - 1.

    The last passes are padded with the last sample at weight 0, since under ZeRO-3 a rank that makes
    fewer forward passes than the others would hang them.
    """
    device = distributed.device()
    stride = distributed.world_size() * batch_size
    for start in range(distributed.rank() * batch_size, -(-count // stride) * stride, stride):
        indices = range(start, start + batch_size)
        batch = default_collate([sample(min(index, count - 1)) for index in indices])
        weight = torch.tensor([float(index < count) for index in indices], device=device)
        yield {name: value.to(device) for name, value in batch.items()}, weight
