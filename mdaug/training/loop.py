"""The training loop, and what a task must provide to it."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from mdaug import distributed
from mdaug.training import checkpoint, sharded_tensors
from mdaug.training.background_writer import BackgroundWriter, Bundle, samples_of
from mdaug.training.batches import BatchPlan
from mdaug.training.checkpoint import TrainingState
from mdaug.training.cost import Workload
from mdaug.training.deepspeed_json import deepspeed_config, zero_stage
from mdaug.training.engine import Engine, resolve_precision
from mdaug.training.metrics import Metrics
from mdaug.training.options import TrainingConfig
from mdaug.training.preemption import StopFlag, ignore_in_worker
from mdaug.training.run_folder import finish_run
from mdaug.training.schedule import learning_rate
from shards import provenance
from shards.errors import UserError
from shards.order import PositionSampler
from shards.output_folder import OutputFolder


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


class Task(ABC):
    """What differs between the VQ-VAE and the diffusion model."""

    module: nn.Module
    """The network that DeepSpeed trains."""
    dataset: Dataset
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
        """Return the validation figures, equal on all ranks; every rank calls it."""

    @abstractmethod
    def validation_passes(self) -> int:
        """Return how many samples a validation and its pictures send through a network, forward alone."""

    @abstractmethod
    def save_images(self, engine: Engine, state: TrainingState) -> dict[str, float]:
        """Write pictures into the run folder and return figures about them; every rank calls it."""

    @abstractmethod
    def export(self, engine: Engine, folder: Path) -> None:
        """Write the model as a diffusers folder with provenance; every rank calls it."""

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

    def snapshots(self, state: TrainingState, plan: BatchPlan, last: bool) -> list[Callable[[], Bundle]]:
        """Return functions that copy a state to be kept beside the checkpoints, where one is due after this step."""
        return []

    def image_step(self, step: int, plan: BatchPlan) -> bool:
        """Return whether pictures are due after this optimizer step (beside those at each validation)."""
        return False


def train(task: Task, config: TrainingConfig, plan: BatchPlan, output: OutputFolder) -> None:
    """Train until the epochs are done, validation stops improving, or a signal asks to stop.

    Raises UserError when gradients stay not finite; the last good checkpoint is named and stays.
    """
    # Build the engine, in the form that can read the last checkpoint.
    device = distributed.device()
    precision = resolve_precision(config.mixed_precision, device)
    settings = deepspeed_config(config, plan, precision)
    state = TrainingState(global_batch=plan.global_batch)
    checkpoints = output.path / "checkpoints"
    resume_from = checkpoint.latest(checkpoints)
    elastic = checkpoint.needs_conversion(resume_from, zero_stage(settings))
    engine = Engine(task.module, config, settings, universal=elastic)
    distributed.barrier()
    checkpoint.prune(checkpoints, config.keep_last)

    # Resume from the last checkpoint, or prepare the network for its first step.
    if resume_from is not None:
        task.load_replicated_state(checkpoint.load(resume_from, engine, state, plan.micro_batch))
        task.figures = state.figures
        if (resume_from / checkpoint.PIECES).is_dir():
            task.load_sharded_state(sharded_tensors.Reader(resume_from / checkpoint.PIECES))
    else:
        task.prepare(engine)

    # Report what is trained.
    metrics = Metrics(config, plan, task.flops_per_sample, state.samples)
    if resume_from is not None:
        metrics.log(f"resumed from {resume_from.name}")
    parameters = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in task.module.parameters())
    flops = f"{task.flops_per_sample / 1e9:.3g} GFLOP per trained sample, " if task.flops_per_sample else ""
    metrics.log(
        f"{parameters / 1e6:.1f} M parameters, {flops}{plan.num_samples} samples, {plan.steps} steps of "
        f"{plan.global_batch} ({plan.micro_batch} x {plan.ranks} rank(s) x {plan.accumulation} accumulation) "
        f"on {device.type}, {precision}"
    )

    # Start the data loaders, the clock and the signal handlers.
    batches = iter(loader(task.dataset, config, plan, state.step))
    progress = _Progress(output, checkpoints, plan)
    progress.write(state)
    metrics.resume(state.step)
    stop, stopping = StopFlag(), False
    background = BackgroundWriter()
    begun = time.perf_counter()

    while state.step < plan.steps and not _stale(state, config):
        # One optimizer step: accumulate the gradients of the micro batches, then apply them.
        lr = learning_rate(config, state.step, plan.steps)
        for _ in range(plan.accumulation):
            waiting = time.perf_counter()
            batch = to_device(next(batches), device)
            metrics.add_data_wait(time.perf_counter() - waiting)
            loss, figures = task.loss(engine, batch)
            engine.backward(loss)
            engine.step(lr)
            metrics.add({"loss": loss, **figures})
        state.step += 1
        state.samples += plan.global_batch
        task.after_step(engine, state)
        metrics.step_done()

        # Decide what is due. Everything below is a collective: all ranks come to the same answers.
        last = state.step == plan.steps
        stopping = stop.agreed(state.step, device)
        validate = last or plan.due(plan.val_every, state.step)
        save = last or stopping or plan.due(plan.save_every, state.step)

        # Mark the last checkpoint complete once its files are written.
        if written := background.poll(state.step, device):
            metrics.log(str(written))
            progress.write(state)

        # Report the steps since the last report; stop if their gradients stay not finite.
        if validate or save or state.step % config.logging_steps == 0:
            progress.record = metrics.report(state.step, lr, engine.grad_norm, float(engine.skipped))
            progress.write(state)
            if int(engine.skipped_in_a_row) >= config.max_skipped_steps:
                raise UserError(
                    f"the gradient was not finite in the last {int(engine.skipped_in_a_row)} steps (now at step "
                    f"{state.step}); the last good checkpoint is {checkpoint.latest(checkpoints) or 'none'}; "
                    "try a lower --lr or --mixed_precision no"
                )

        # Validate, and keep the weights if they are the best so far.
        pausing = time.perf_counter()
        if validate and not stopping:
            _validate(task, engine, state, config, metrics)

        # Write pictures.
        if config.save_images and not stopping and (validate or task.image_step(state.step, plan)):
            shown = task.save_images(engine, state)
            if shown:
                metrics.write({"samples": state.samples, **{f"images/{name}": value for name, value in shown.items()}})
                metrics.log("pictures: " + " | ".join(f"{name} {value:.4g}" for name, value in shown.items()))

        # Copy the state of a checkpoint, which is written behind the next steps.
        last = last or _stale(state, config)
        bundles = task.snapshots(state, plan, last)
        if save or last:
            bundles.append(partial(_checkpoint, checkpoints, task, engine, state, config))
        if bundles and (written := background.write(bundles)):
            metrics.log(str(written))
            progress.write(state)
        metrics.add_pause(time.perf_counter() - pausing)
        if stopping:
            break

    # Export the last weights while the last checkpoint is written, and the best ones that a finished run had lost.
    trained = time.perf_counter() - begun
    stalled = background.stalled
    best = output.path / "best"
    if not stopping:
        task.export(engine, output.path / task.last_folder)
        if state.best_samples == state.samples and distributed.from_main(not provenance.is_whole(best)):
            task.export(engine, best)
    if written := background.finish():
        metrics.log(str(written))
        progress.write(state)
    if background.written:
        metrics.log(
            f"checkpoints: {background.written} written; training waited {stalled:.2f} s of {trained:.1f} s for them "
            f"({100 * stalled / trained:.2f} %), the end another {background.stalled - stalled:.2f} s"
        )

    # Log why the run ends; mark it finished if it is.
    if stopping:
        metrics.log(f"asked to stop: saved at {state.samples} samples; the same command resumes")
    else:
        reason = "trained to the end"
        if _stale(state, config):
            reason = f"no improvement over {state.stale_validations} validations"
        reason = f"{reason} after {state.samples} samples; best {task.score} {state.best_score:.5g}"
        reason = f"{reason} at {state.best_samples} samples"
        metrics.log(reason)
        finish_run(output, config, best if state.best_samples else output.path / task.last_folder, reason)
    metrics.close()
    stop.close()
    if stopping:
        raise SystemExit(128 + stop.number)  # as a shell reports it: the step after this one must not start


class _Progress:
    """Writes `progress.json` of a training, on rank 0."""

    def __init__(self, output: OutputFolder, checkpoints: Path, plan: BatchPlan):
        self.output, self.checkpoints, self.plan = output, checkpoints, plan
        self.record: dict[str, Any] = {}
        """The last report of the metrics."""

    def write(self, state: TrainingState) -> None:
        """Write how far the training is, and how far its last complete checkpoint was."""
        if not distributed.is_main():
            return
        latest = checkpoint.latest(self.checkpoints)
        note = "epoch {epoch:.2f}, loss {loss:.3f}, {img_s:.1f} img/s".format(**self.record) if self.record else ""
        saved = samples_of(latest) if latest is not None else 0
        self.output.progress(state.samples, self.plan.total_samples, "sample", saved=saved, note=note)


def _checkpoint(folder: Path, task: Task, engine: Engine, state: TrainingState, config: TrainingConfig) -> Bundle:
    replicated, sharded = task.replicated_state(), task.sharded_state()
    return checkpoint.collect(folder, engine, state, replicated, sharded, config.keep_last)


def _stale(state: TrainingState, config: TrainingConfig) -> bool:
    """Return whether validation has not improved for so long that the training ends early."""
    return 0 < config.early_stop_patience <= state.stale_validations


def _validate(task: Task, engine: Engine, state: TrainingState, config: TrainingConfig, metrics: Metrics) -> None:
    """Validate, and export the weights if they are the best so far."""
    figures = task.validate(engine)
    state.figures = figures
    metrics.write({"samples": state.samples, **{f"val/{name}": value for name, value in figures.items()}})
    fallen = [name for name in (task.score, *task.watched) if figures[name] < state.lowest.get(name, math.inf)]
    state.lowest |= {name: figures[name] for name in fallen}
    state.stale_validations = 0 if fallen else state.stale_validations + 1
    note = f"{state.stale_validations} without improvement"
    if task.score in fallen:
        note = "best so far"
        state.best_score, state.best_samples = figures[task.score], state.samples
        task.export(engine, config.output_dir / "best")
    elif fallen:
        note = f"lowest so far: {', '.join(fallen)}"
    shown = " | ".join(f"{name} {value:.4g}" for name, value in figures.items())
    metrics.log(f"validation at {state.samples:,} samples: {shown} ({note})")


def loader(dataset: Dataset, config: TrainingConfig, plan: BatchPlan, first_step: int) -> DataLoader:
    """Return this rank's micro batches from optimizer step `first_step` to the last of the plan."""
    sampler = PositionSampler(
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        rank=distributed.rank(),
        world_size=plan.ranks,
        first_step=first_step,
        last_step=plan.steps,
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
    """Return a micro batch on a device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
