"""What the training loop asks of a task: the VQ-VAE, the diffusion model, its distillation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mdaug import distributed
from mdaug.training import sharded_tensors
from mdaug.training.background_writer import Bundle
from mdaug.training.batches import BatchPlan
from mdaug.training.checkpoint import TrainingState
from mdaug.training.cost import Workload
from mdaug.training.engine import Engine
from shards.order import PositionDataset


class Task(ABC):
    """What differs between the VQ-VAE and the diffusion model."""

    module: nn.Module
    """The network that DeepSpeed trains."""
    dataset: PositionDataset
    """Training samples by position."""
    epoch: int
    """Positions in which every training image of the target is shown once."""
    figures: dict[str, float]
    """Those of the last validation."""
    score: str
    """Name of the validation figure that decides which weights are best; lower is better."""
    watched: tuple[str, ...] = ()
    """Further validation figures: training goes on while any of them, or the score, still falls."""
    last_folder: str
    """Folder of the final weights in the run folder; the best ones go to best/."""
    flops_per_sample: float | None = None
    """FLOPs of one trained sample (forward and backward), where known."""

    def stopped(self) -> bool:
        """Return whether any rank was asked to stop, the same on all ranks; `train` replaces it."""
        return False

    @abstractmethod
    def loss(self, engine: Engine, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean loss of a micro batch and the figures to log."""

    def prepare(self, engine: Engine) -> None:  # noqa: B027 - not every task has something to prepare
        """Run once before the first step of a new run (not when resuming)."""

    @abstractmethod
    def after_step(self, engine: Engine, state: TrainingState) -> None:
        """Update what follows the weights (EMA, codebook) after an optimizer step."""

    @abstractmethod
    def validate(self, engine: Engine) -> dict[str, float]:
        """Return the validation figures, equal on all ranks; every rank calls it. May raise Stopped."""

    @abstractmethod
    def validation_passes(self) -> int:
        """Return how many samples a validation and its pictures send through a network, forward alone."""

    @abstractmethod
    def save_images(self, engine: Engine, state: TrainingState) -> dict[str, float]:
        """Write pictures into the run folder and return figures about them; every rank calls it."""

    @abstractmethod
    def exporter(self, engine: Engine) -> Callable[[Path], object]:
        """Copy the model to CPU memory and return what writes it, on any thread of rank 0, as a diffusers folder with
        provenance; every rank calls it."""

    def export(self, engine: Engine, folder: Path) -> None:
        """Write the model as a diffusers folder with provenance; every rank calls it."""
        write = self.exporter(engine)
        if distributed.is_main():
            write(folder)
        distributed.barrier()

    @abstractmethod
    def workload(self, batch: int) -> Workload:
        """Count what micro batches of `batch` samples take."""

    @abstractmethod
    def rehearse(self, batch: int) -> None:
        """Run a forward and a backward pass of `batch` samples without data, which leave no trace."""

    def replicated_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors, equal on all ranks, that a checkpoint keeps beside DeepSpeed's state."""
        return {}

    def load_replicated_state(self, tensors: dict[str, torch.Tensor]) -> None:  # noqa: B027 - not every task has any
        """Restore them on every rank."""

    def sharded_state(self) -> dict[str, torch.Tensor]:
        """Return this rank's shards of the tensors that a checkpoint keeps divided over the ranks."""
        return {}

    def load_sharded_state(self, reader: sharded_tensors.Reader) -> None:  # noqa: B027 - not every task has any
        """Restore them, whatever number of ranks has written them."""

    def follow(self, engine: Engine, state: TrainingState) -> None:  # noqa: B027 - not every task lags behind
        """Bring what follows the weights every few steps up to this one; at steps that the plan alone decides."""

    def snapshots(
        self, engine: Engine, state: TrainingState, plan: BatchPlan, last: bool
    ) -> list[Callable[[], Bundle]]:
        """Return functions that copy a state to be kept beside the checkpoints, where one is due after this step."""
        return []

    def image_step(self, step: int, plan: BatchPlan) -> bool:
        """Return whether pictures are due after this optimizer step (beside those at each validation)."""
        return False
