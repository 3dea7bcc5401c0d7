"""The one training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mdaug import distributed
from mdaug.training import checkpoint, sharded_tensors
from mdaug.training.background_writer import BackgroundWriter, Bundle, Written, samples_of
from mdaug.training.batches import BatchPlan
from mdaug.training.checkpoint import TrainingState
from mdaug.training.deepspeed_json import deepspeed_config, zero_stage
from mdaug.training.engine import Engine, resolve_precision
from mdaug.training.loaders import Stopped, loader, to_device
from mdaug.training.metrics import Metrics
from mdaug.training.options import TrainingConfig
from mdaug.training.preemption import StopFlag
from mdaug.training.run_folder import finish_run
from mdaug.training.schedule import learning_rate
from mdaug.training.task import Task
from shards import provenance
from shards.errors import UserError
from shards.order import random_at
from shards.output_folder import OutputFolder

STREAM_DROPOUT = 9  # see shards/order.py


def train(task: Task, config: TrainingConfig, plan: BatchPlan, output: OutputFolder) -> None:
    """Train until the epochs are done, validation stops improving, or a signal asks to stop.

    Raises UserError when gradients stay not finite; the last good checkpoint is named and stays.
    """
    # Build the engine, in the form that can read the last checkpoint.
    device = distributed.device()
    precision = resolve_precision(config.mixed_precision, device)
    settings = deepspeed_config(config, plan, precision)
    state = TrainingState(global_batch=plan.global_batch, order=task.dataset.order.version)
    checkpoints = output.path / "checkpoints"
    # One rank chooses for all: a file system may show a new checkpoint to some nodes only.
    resume_from = distributed.from_main(checkpoint.latest(checkpoints) if distributed.is_main() else None)
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
    judged = state.samples == state.validated or not _validation_due(plan, state.step)
    metrics = Metrics(config, plan, task.flops_per_sample, state.samples, judged)
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
    task.stopped = partial(stop.agreed, 0, device)  # type: ignore[method-assign]
    background = BackgroundWriter()
    begun = time.perf_counter()

    def said(written: Written | None) -> None:
        if written:
            metrics.log(str(written))
            progress.write(state)

    def save_state() -> Callable[[], Bundle]:
        return partial(_checkpoint, checkpoints, task, engine, state, config)

    def judge(saved: bool) -> None:
        """Validate, keep the weights if they are the best so far, write pictures; a checkpoint hears of it."""
        best = _validate(task, engine, state, metrics)
        note = partial(checkpoint.note_validation, checkpoints, asdict(state)) if saved else lambda: None
        if best:
            said(background.write([partial(_best, task, engine, output.path / "best", note)]))
        elif saved:
            said(background.finish())
            note()

    # A run that was stopped or killed during the validation of its last step makes up for it.
    if not judged:
        with contextlib.suppress(Stopped):
            judge(saved=True)
            _pictures(task, engine, state, config, metrics)
        stopping = stop.agreed(0, device)

    while not stopping and state.step < plan.steps and not _stale(state, config):
        # One optimizer step: accumulate the gradients of the micro batches, then apply them.
        lr = learning_rate(config, state.step, plan.steps)
        for number in range(plan.accumulation):
            waiting = time.perf_counter()
            batch = to_device(next(batches), device)
            metrics.add_data_wait(time.perf_counter() - waiting)
            # What the network draws, dropout, follows from the micro batch alone: a resumed run draws it again.
            draws = random_at(config.seed, STREAM_DROPOUT, plan.micro_batch_number(state.step, number))
            torch.manual_seed(int(draws.integers(2**63)))
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
        validate = _validation_due(plan, state.step)
        save = last or stopping or plan.due(plan.save_every, state.step)

        # Mark the last folder complete once its files are written.
        said(background.poll(state.step, device))

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

        # Copy the state of a checkpoint, which is written behind the validation and the next steps.
        pausing = time.perf_counter()
        if validate:
            task.follow(engine, state)
        if bundles := task.snapshots(engine, state, plan, last) + ([save_state()] if save else []):
            said(background.write(bundles))

        # Validate, and write pictures.
        if not stopping:
            try:
                if validate:
                    judge(saved=save)
                if validate or task.image_step(state.step, plan):
                    _pictures(task, engine, state, config, metrics)
            except Stopped:
                stopping = True

        # A run that ends here, without a checkpoint yet.
        if not save and (stopping or _stale(state, config)):
            ending = [] if stopping else task.snapshots(engine, state, plan, True)
            said(background.write([*ending, save_state()]))
        metrics.add_pause(time.perf_counter() - pausing)

    # Export the last weights while the last checkpoint is written, and the best ones that a finished run had lost.
    trained = time.perf_counter() - begun
    stalled = background.stalled
    best = output.path / "best"
    if not stopping:
        task.export(engine, output.path / task.last_folder)
    said(background.finish())
    if not stopping and state.best_samples == state.samples and distributed.from_main(not provenance.is_whole(best)):
        task.export(engine, best)
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
        note = ""
        if self.record:
            note = "epoch {epoch:.2f}, loss {loss:.3f}, {img_s:.1f} img/s".format(**self.record)
            note += f", {100 * self.record['paused']:.0f} % paused"
        saved = samples_of(latest) if latest is not None else 0
        self.output.progress(state.samples, self.plan.total_samples, "sample", saved=saved, note=note)


def _checkpoint(folder: Path, task: Task, engine: Engine, state: TrainingState, config: TrainingConfig) -> Bundle:
    replicated, sharded = task.replicated_state(), task.sharded_state()
    return checkpoint.collect(folder, engine, state, replicated, sharded, config.keep_last)


def _stale(state: TrainingState, config: TrainingConfig) -> bool:
    """Return whether validation has not improved for so long that the training ends early."""
    return 0 < config.early_stop_patience <= state.stale_validations


def _validation_due(plan: BatchPlan, step: int) -> bool:
    """Return whether a validation belongs to this optimizer step."""
    return step == plan.steps or (step > 0 and plan.due(plan.val_every, step))


def _validate(task: Task, engine: Engine, state: TrainingState, metrics: Metrics) -> bool:
    """Validate, and return whether the weights are the best so far."""
    begun = time.perf_counter()
    figures = task.validate(engine)
    state.figures, state.validated = figures, state.samples
    metrics.write({"samples": state.samples, **{f"val/{name}": value for name, value in figures.items()}})
    fallen = [name for name in (task.score, *task.watched) if figures[name] < state.lowest.get(name, math.inf)]
    state.lowest |= {name: figures[name] for name in fallen}
    state.stale_validations = 0 if fallen else state.stale_validations + 1
    note = f"{state.stale_validations} without improvement"
    if task.score in fallen:
        note = "best so far"
        state.best_score, state.best_samples = figures[task.score], state.samples
    elif fallen:
        note = f"lowest so far: {', '.join(fallen)}"
    shown = " | ".join(f"{name} {value:.4g}" for name, value in figures.items())
    seconds = time.perf_counter() - begun
    metrics.log(f"validation at {state.samples:,} samples: {shown} ({note}; {seconds:.1f} s)")
    return task.score in fallen


def _best(task: Task, engine: Engine, folder: Path, committed: Callable[[], None]) -> Bundle:
    """Copy the weights that are the best so far; every rank calls it."""
    write = task.exporter(engine)
    files: dict[Path, Callable[[Path], object]] = {}
    if distributed.is_main():
        files[folder / provenance.FILE_NAME] = lambda path: write(path.parent)
    return Bundle(folder, files, committed, marked=False)


def _pictures(task: Task, engine: Engine, state: TrainingState, config: TrainingConfig, metrics: Metrics) -> None:
    """Write pictures where they are wanted."""
    if not config.save_images:
        return
    begun = time.perf_counter()
    shown = task.save_images(engine, state)
    if shown:
        metrics.write({"samples": state.samples, **{f"images/{name}": value for name, value in shown.items()}})
        figures = " | ".join(f"{name} {value:.4g}" for name, value in shown.items())
        metrics.log(f"pictures: {figures} ({time.perf_counter() - begun:.1f} s)")
