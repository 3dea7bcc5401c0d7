"""The batches that a rank loads, for training and for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mdaug import distributed
from mdaug.images import in_range
from mdaug.training.batches import BatchPlan
from mdaug.training.options import TrainingConfig
from mdaug.training.preemption import ignore_in_worker
from shards.order import PositionDataset, PositionSampler

VALIDATION_SAMPLES = 8192  # at most: the time of a validation does not grow with the set
ASK_EVERY = 16  # validation batches between two looks whether the run is to stop
BATCHES_PER_WORKER = 8  # of a validation: fewer are not worth a process


class Stopped(Exception):
    """All ranks were asked to stop during a validation."""


def loader(dataset: PositionDataset, config: TrainingConfig, plan: BatchPlan, first_step: int) -> DataLoader:
    """Return this rank's micro batches from optimizer step `first_step` to the last of the plan."""
    sampler = PositionSampler(
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        rank=distributed.rank(),
        world_size=plan.ranks,
        first_step=first_step,
        last_step=plan.steps,
        order=dataset.order,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.num_workers,
        pin_memory=distributed.device().type == "cuda",
        prefetch_factor=4 if config.num_workers else None,
        worker_init_fn=ignore_in_worker,
    )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a micro batch on a device; images, which travel as uint8 levels, are float32 in [-1, 1] there."""
    there = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return {name: in_range(value) if value.dtype == torch.uint8 else value for name, value in there.items()}


def validation_batches(
    sample: Callable[[int], dict[str, Any]], count: int, config: TrainingConfig, stopped: Callable[[], bool]
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Yield (batch, weight) of this rank over samples 0 ... count - 1.

    The last passes are padded with the last sample at weight 0, since under ZeRO-3 a rank that makes
    fewer forward passes than the others would hang them. Raises Stopped on all ranks where `stopped` says so.
    """
    device, batch_size = distributed.device(), int(config.batch_size)
    stride = distributed.world_size() * batch_size
    starts = range(distributed.rank() * batch_size, -(-count // stride) * stride, stride)
    indices = [[min(start + i, count - 1) for i in range(batch_size)] for start in starts]
    workers = min(config.num_workers, len(indices) // BATCHES_PER_WORKER)
    loader = DataLoader(
        _Positions(sample),
        batch_sampler=indices,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_in_worker,
    )
    for number, (start, batch) in enumerate(zip(starts, loader, strict=True)):
        if number % ASK_EVERY == 0 and stopped():
            raise Stopped
        weight = torch.tensor([float(start + i < count) for i in range(batch_size)])
        yield to_device(batch, device), weight.to(device, non_blocking=True)


class _Positions(Dataset):
    """What a function gives for each position."""

    def __init__(self, sample: Callable[[int], dict[str, Any]]):
        self.sample = sample

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.sample(position)
