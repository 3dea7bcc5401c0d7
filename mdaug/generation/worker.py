"""A worker of a plan: which shards it makes, and how."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdaug import distributed
from mdaug.generation.plan import Plan, finished_samples
from mdaug.generation.shard import Members, make_shard
from mdaug.generation.sources import Sources
from mdaug.measures.sifter import Sifter
from mdaug.models.norms import use_working_precision
from shards.output_folder import OutputFolder, is_finished
from shards.pool import cores
from shards.progress import Progress
from shards.verify import inspect
from shards.writer import finished, write_shard

MOST_ENCODERS = 8  # threads that encode; a fast GPU with colour images at few steps keeps as many busy


def encoders() -> int:
    """Return the threads that encode PNGs beside the device: the cores of this process but one, 2 to MOST_ENCODERS."""
    return max(2, min(MOST_ENCODERS, cores() - 1))


@dataclass(frozen=True)
class Done:
    """What a worker did.

    Attributes:
        samples: how many it made.
        seconds: the time that took.
        idle: share of that time in which the device did nothing.
    """

    samples: int
    seconds: float
    idle: float


def shards_of(plan: Plan, worker: int, workers: int) -> list[int]:
    """Return the shards of one of several workers: every `workers`-th."""
    return list(range(worker, plan.num_shards, workers))


def missing_shards(plan: Plan, folder: Path) -> list[int]:
    """Return the shards that are not there, by one listing: every worker asks, and there may be very many of them."""
    there = _listed(folder)
    return [shard for shard in range(plan.num_shards) if plan.shard_name(shard) not in there]


def is_complete(plan: Plan, folder: Path) -> bool:
    """Return whether all shards are there, those of real images included; finalize looks into them."""
    there, real = _listed(folder), map(plan.real_shard_name, range(plan.num_real_shards))
    return there.issuperset(map(plan.shard_name, range(plan.num_shards))) and there.issuperset(real)


def _listed(folder: Path) -> set[str]:
    """Return the tars that have a sidecar, which is written last."""
    names = set(os.listdir(folder))
    return {name for name in names if name.endswith(".tar") and f"{name.removesuffix('.tar')}.json" in names}


def is_there(plan: Plan, folder: Path, shard: int, repair: bool) -> bool:
    """Return whether a shard is finished; with `repair`, whether finalize will find it whole too."""
    path = folder / plan.shard_name(shard)
    if not repair:
        return finished(path) is not None
    return inspect(path, *plan.keys_and_labels(shard), plan.image_shape).is_whole


def assigned(plan: Plan, folder: Path, worker: int, workers: int, repair: bool = False) -> list[int]:
    """Return the shards that a worker is to look at, in its order.

    Its own ones by the rule. If they all exist, the missing ones, in reverse from a start of this worker's own, so that
    helpers meet an owner last, who goes forwards. With a look at the disk before each shard they share the list without
    locks, and none is left out whichever of them run. Two workers on one shard write equal bytes.
    """
    own = [shard for shard in shards_of(plan, worker, workers) if not is_there(plan, folder, shard, repair)]
    if own or workers == 1:
        return own
    missing = missing_shards(plan, folder)
    end = len(missing) - worker * (len(missing) - 1) // workers
    return missing[:end][::-1] + missing[end:][::-1]


def make_shards(
    plan: Plan,
    pipeline: Any,
    output: OutputFolder,
    worker: int = 0,
    workers: int = 1,
    *,
    sifter: Sifter | None = None,
    sources: Sources | None = None,
    repair: bool = False,
) -> Done:
    """Make the shards of a worker and return how that went.

    Sifting, PNG encoding and writing run in threads while the device denoises the next batch; at most two
    shards are held in memory.

    Args:
        plan: what to make.
        pipeline: the `MicroDopplerPipeline` of the plan, on its device.
        output: the folder of the plan.
        worker: number of this worker in [0, workers).
        workers: number of workers.
        sifter: the `Sifter` of a plan that sifts.
        sources: the `Sources` of a plan that redraws.
        repair: make damaged shards again, too.

    Raises:
        UserError: no space left, or an image that is not a number; finished shards stay, and the same command
            continues from there.
    """
    prepare(plan, pipeline)
    shards = assigned(plan, output.path, worker, workers, repair)
    _report(plan, output)
    made, written, busy = 0, None, Busy(plan.device)
    with (
        ThreadPoolExecutor(encoders(), initializer=torch.set_num_threads, initargs=(1,)) as threads,
        ThreadPoolExecutor(1) as writer,
        Progress("generate", sum(len(plan.samples(shard)) for shard in shards), "image") as progress,
    ):
        for shard in shards:
            size = len(plan.samples(shard))
            if is_there(plan, output.path, shard, repair):  # another worker has made it meanwhile
                progress.update(size)
                continue
            if repair:
                output.begin_again()
            # The device computes here; the threads take the images from it.
            begin_with = sources.of(plan.samples(shard)) if sources else None
            sample = partial(sample_images, plan, pipeline, busy, sources)
            samples, statistics = make_shard(plan, shard, sample, sifter, threads, progress.update, begin_with)
            made += size
            # One shard is written while the next is made.
            _wait(written)
            written = writer.submit(_write, plan, output, shard, samples, statistics)
        _wait(written)
    done = busy.done(made)
    _report(plan, output)
    if made:
        rate = f"{made / done.seconds:.2f} img/s, device idle {100 * done.idle:.1f} %"
        print(f"worker {worker} of {workers}: {made} samples, {rate}", flush=True)
    return done


def prepare(plan: Plan, pipeline: Any) -> None:
    """Set precision, threads, memory layout and compilation of a pipeline as the plan says."""
    pipeline.set_progress_bar_config(disable=True)
    use_working_precision(pipeline.vqvae)
    if plan.mixed_precision != "no":
        pipeline.unet.to(distributed.DTYPES[plan.mixed_precision])
    if plan.device == "cpu":
        torch.set_num_threads(plan.cpu_threads)
    else:
        pipeline.unet.to(memory_format=distributed.memory_format())
        pipeline.vqvae.to(memory_format=distributed.memory_format())
    if plan.compile:
        pipeline.unet.compile(dynamic=False)


def sample_images(
    plan: Plan, pipeline: Any, busy: Busy, sources: Sources | None, samples: np.ndarray, candidate: int = 0
) -> torch.Tensor:
    """Return the images of sample indices, float32 (B, C, H, W) in [0, 1], on the device of the pipeline.

    All samples that are redrawn together have one strength.
    """
    wanted = len(samples)
    if plan.compile:  # one size for all batches: the network is compiled anew for each
        samples = np.resize(samples, plan.batch_size)
    generators = [torch.Generator().manual_seed(seed) for seed in plan.seeds(samples, candidate).tolist()]
    redraw: dict[str, Any] = {}
    if sources:
        begin_with = sources.of(samples)
        rows = [begin_with[sample].conditions for sample in samples.tolist()]
        redraw = {"image": sources.images(samples), "strength": begin_with[int(samples[0])].strength}
    else:
        rows = [plan.conditions_of(sample) for sample in samples.tolist()]
    with busy, torch.inference_mode():
        # The U-Net's weights have the plan's precision already; autocast would compute its norms in fp32.
        latents = pipeline(
            plan.class_names(samples),
            generator=generators,
            guidance_scale=plan.guidance_scale,
            guidance_interval=plan.guidance_interval,
            num_inference_steps=plan.num_inference_steps,
            output_type="latent",
            conditions={name: [row[name] for row in rows] for name in plan.condition_names},
            **redraw,
        ).images
        # float32 weights of the VQ-VAE keep its code vectors exact; autocast runs its convolutions in low precision.
        with distributed.autocast(plan.mixed_precision, plan.device):
            return (pipeline.decode(latents) / 2 + 0.5).clamp(0, 1)[:wanted]


class Busy:
    """How long the device computed; a context manager around each batch.

    A GPU is asked by events in its stream, so that nothing waits for it; gaps within a batch count as busy.
    """

    def __init__(self, device: str):
        self.device = device
        self.begun = time.perf_counter()
        self.seconds = 0.0
        self.events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self.start = time.perf_counter()
        if self.device == "cuda":
            self.events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.events[-1][0].record()

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            self.events[-1][1].record()
        else:
            self.seconds += time.perf_counter() - self.start

    def done(self, samples: int) -> Done:
        """Return what was done since the start."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.seconds = sum(first.elapsed_time(last) for first, last in self.events) / 1000
        seconds = time.perf_counter() - self.begun
        return Done(samples, seconds, max(0.0, 1 - self.seconds / seconds))


def _wait(written: Future | None) -> None:
    if written:
        written.result()


def _write(
    plan: Plan, output: OutputFolder, shard: int, samples: Iterator[Members], statistics: Callable[[], dict]
) -> None:
    write_shard(output.path / plan.shard_name(shard), samples, statistics)
    if output.progress_due:
        _report(plan, output)


def _report(plan: Plan, output: OutputFolder) -> None:
    """Write how many samples all workers have finished."""
    if not is_finished(output.path):  # by another worker, which has removed the record
        done = finished_samples(plan, output.path)
        output.progress(done, plan.total, "image", saved=done)
