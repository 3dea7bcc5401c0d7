"""Train the classifiers of an experiment, each once: shared among ranks, side by side on CPU cores, or one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mdaug.evaluation import usefulness
from mdaug.evaluation.usefulness import Job
from mdaug.measures.auxiliary import Auxiliary
from mdaug.measures.classifier import one_thread
from mdaug.measures.image_set import ImageSet
from shards.atomic import write_text
from shards.pool import Pool, cores
from shards.progress import Progress

MOST_WORKERS = 8  # each holds its own copy of the images and of torch


def run_all(
    jobs: list[Job],
    folder: Path,
    workers: int,
    *,
    share: tuple[int, int] = (0, 1),
    train: ImageSet,
    held_out: ImageSet,
    synthetic: ImageSet,
    sifted: ImageSet | None = None,
    simulated: ImageSet | None = None,
    auxiliary: Auxiliary | None = None,
    like: Mapping[tuple[int | str, int], ImageSet] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    **settings: Any,
) -> list[dict] | None:
    """Return the results of all jobs in their order; a result that `folder` already holds is read, not made again.

    Of W ranks, rank r runs every W-th job from the r-th on. The ranks need not run at the same time; all but the last
    to finish get None.

    Args:
        jobs: what to train.
        folder: where each job keeps its result, `<name>.json`.
        workers: processes on a machine without GPU; 0: one per core. With 1, and on a GPU, all runs in this process.
        share: number of this rank, and number of ranks.
        train: real training images.
        held_out: real images that judge.
        synthetic: synthetic images.
        sifted: those of them that the sifter keeps, if there are any.
        simulated: images of a simulator, if there are any.
        auxiliary: images of other classes, if there are any.
        like: (real images per class, seed) -> images of a generator that saw these images only, if there are any.
        progress: called after each job with the number of results of all ranks, and of all jobs.
        settings: further arguments of `usefulness.run_job`.
    """
    sets = {"train": train, "held_out": held_out, "synthetic": synthetic, "sifted": sifted, "simulated": simulated}
    further = {"auxiliary": auxiliary, "like": like}
    paths = {job: folder / f"{job.name}.json" for job in jobs}
    # This rank's share of what is missing.
    missing = [job for job in jobs[share[0] :: share[1]] if not paths[job].is_file()]
    workers = 1 if torch.cuda.is_available() else min(workers or cores(), MOST_WORKERS)
    with (
        Progress("classifiers", len(missing), "classifier") as bar,
        Pool(workers, len(missing), shared=(folder, {**sets, **further, **settings})) as pool,
    ):
        for _ in pool.map(_run, missing, chunk=1):
            bar.update()
            progress(sum(path.is_file() for path in paths.values()), len(paths))
    # All results, where no other rank is still at work.
    if not all(path.is_file() for path in paths.values()):
        return None
    return [json.loads(paths[job].read_text(encoding="utf-8")) for job in jobs]


def _run(job: Job, folder: Path, inputs: dict[str, Any]) -> None:
    with one_thread():
        write_text(folder / f"{job.name}.json", json.dumps(usefulness.run_job(job, **inputs)) + "\n")
