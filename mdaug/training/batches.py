"""How an optimizer step is divided over ranks and micro batches."""

from __future__ import annotations

from dataclasses import dataclass

from mdaug import distributed
from mdaug.training.options import TrainingConfig
from shards.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step is divided: global_batch = micro_batch x ranks x accumulation."""

    global_batch: int
    micro_batch: int
    ranks: int
    accumulation: int
    steps: int
    """Optimizer steps of the whole run."""
    num_samples: int
    """Samples of the training set, that is, of one epoch."""
    val_every: int
    """Samples between validations."""
    save_every: int
    """Samples between checkpoints."""

    @property
    def total_samples(self) -> int:
        """Samples of the whole run."""
        return self.steps * self.global_batch

    def micro_batch_number(self, step: int, number: int) -> int:
        """Return the number, in the whole run, of micro batch `number` of step `step` on this rank."""
        return (step * self.accumulation + number) * self.ranks + distributed.rank()

    def due(self, every: int, step: int) -> bool:
        """Return whether optimizer step `step` (from 1) was the first to reach a multiple of `every` samples."""
        return step * self.global_batch // every > (step - 1) * self.global_batch // every


def accumulation(config: TrainingConfig, ranks: int) -> int:
    """Return the micro batches per rank and step; raises UserError with the numbers where the batch does not divide."""
    micro = 1 if config.batch_size == "auto" else config.batch_size
    if config.global_batch_size is None:
        return config.gradient_accumulation_steps
    if config.global_batch_size % (micro * ranks):
        raise UserError(
            f"global_batch_size={config.global_batch_size} does not divide into {ranks} rank(s) x "
            f"batch_size={config.batch_size} = {ranks * micro} samples per pass; "
            f"{flags_for(config.global_batch_size, ranks, micro)}, or for a new run choose a multiple of "
            f"{ranks * micro}"
        )
    return config.global_batch_size // (micro * ranks)


def flags_for(global_batch: int, ranks: int, micro: int) -> str:
    """Return what to do so that a number of ranks trains with a global batch, as text.

    The flags hold the largest micro batch up to `micro` that fits, so that none of them is refused.
    """
    if global_batch % ranks:
        fitting = ", ".join(str(number) for number in range(1, global_batch + 1) if global_batch % number == 0)
        return f"{global_batch} samples do not divide over {ranks} rank(s): start it on one of {fitting} ranks"
    largest = max(size for size in range(1, min(micro, global_batch // ranks) + 1) if global_batch // ranks % size == 0)
    return f"add --global_batch_size {global_batch} --batch_size {largest} --gradient_accumulation_steps 1"


def plan_batches(config: TrainingConfig, num_samples: int) -> BatchPlan:
    """Divide the global batch over ranks and accumulation; raises UserError with the numbers where it cannot be."""
    ranks, micro = distributed.world_size(), int(config.batch_size)
    passes = accumulation(config, ranks)
    global_batch = micro * ranks * passes
    return BatchPlan(
        global_batch=global_batch,
        micro_batch=micro,
        ranks=ranks,
        accumulation=passes,
        steps=-(-(config.train_samples or config.epochs * num_samples) // global_batch),
        num_samples=num_samples,
        val_every=config.val_samples or config.val_epochs * num_samples,
        save_every=config.save_samples or config.save_epochs * num_samples,
    )
