"""Train the classifiers of an experiment: on a GPU one after the other, on CPU cores side by side, each only once."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from mdaug.distributed import rank, world_size
from mdaug.evaluation import usefulness
from mdaug.evaluation.usefulness import Job
from mdaug.measures.classifier import one_thread
from mdaug.measures.image_set import ImageSet
from shards.atomic import write_text
from shards.progress import Progress

MOST_WORKERS = 8  # each holds its own copy of the images and of torch

_inputs: dict = {}  # of a worker process


def run_all(
    jobs: list[Job],
    folder: Path,
    workers: int,
    *,
    train: ImageSet,
    held_out: ImageSet,
    synthetic: ImageSet,
    sifted: ImageSet | None = None,
    simulated: ImageSet | None = None,
    **settings,
) -> list[dict] | None:
    """Return the results of all jobs in their order; a result that `folder` holds already is read, not made again.

    Of W ranks (environment RANK and WORLD_SIZE), rank r runs every W-th job from the r-th on. The ranks need not run
    at the same time; all but the last to finish get None.

    Args:
        jobs: what to train.
        folder: where each job keeps its result, `<name>.json`.
        workers: processes on a machine without GPU; 0: one per core. With 1, and on a GPU, all runs in this process.
        train: real training images.
        held_out: real images that judge.
        synthetic: synthetic images.
        sifted: those of them that the sifter keeps, if there are any.
        simulated: images of a simulator, if there are any.
        settings: further arguments of `usefulness.run`.
    """
    sets = {"train": train, "held_out": held_out, "synthetic": synthetic, "sifted": sifted, "simulated": simulated}
    inputs = {**sets, **settings}
    paths = {job: folder / f"{job.name}.json" for job in jobs}
    missing = [job for job in jobs[rank() :: world_size()] if not paths[job].is_file()]
    with Progress("classifiers", len(missing), "classifier") as progress:
        for job, result in _run(missing, workers, inputs):
            write_text(paths[job], json.dumps(result) + "\n")
            progress.update()
    if not all(path.is_file() for path in paths.values()):
        return None
    return [json.loads(paths[job].read_text(encoding="utf-8")) for job in jobs]


def _run(jobs: list[Job], workers: int, inputs: dict) -> Iterator[tuple[Job, dict]]:
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs), MOST_WORKERS)
    if workers <= 1 or torch.cuda.is_available():
        for job in jobs:
            yield job, _on_one_thread(job, inputs)
        return
    # spawn: a forked child of a process that has run a backward pass cannot run one itself.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(inputs,))
    try:
        futures = {pool.submit(_in_worker, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(inputs: dict) -> None:
    _inputs.update(inputs)


def _in_worker(job: Job) -> dict:
    return _on_one_thread(job, _inputs)


def _on_one_thread(job: Job, inputs: dict) -> dict:
    with one_thread():
        return usefulness.run(job, **inputs)
