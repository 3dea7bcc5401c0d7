"""Snapshots of the power-function averages, for reconstruction after the training.

    ema_snapshots/samples-000012800/rank-00000-of-00002.safetensors     "<sigma_rel>/<parameter>", fp16
                                    COMPLETE

At most `keep` lie evenly over the samples seen so far: the grid starts at 1/(4 keep) of the planned length, and each
time it is full every second snapshot goes. The last one is of the end of the run.
"""  # fmt: skip

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from mdaug.training import pieces
from mdaug.training.background import Bundle, complete, keep_only, prepare
from mdaug.training.checkpoint import TrainingState
from mdaug.training.ema import EMA, HALF_LIFE
from mdaug.training.run import BatchPlan

FOLDER = "ema_snapshots"


def interval(samples: int, planned: int, keep: int) -> int:
    """Return the distance of the snapshots, in samples, when so many samples of so many are seen."""
    distance = -(-planned // (4 * keep))
    while samples > keep * distance:
        distance *= 2
    return distance


def due(samples: int, plan: BatchPlan, keep: int) -> bool:
    """Return whether the step that ended at `samples` was the first to reach a point of the grid."""
    distance = interval(samples, plan.steps * plan.global_batch, keep)
    return samples // distance > (samples - plan.global_batch) // distance


def collect(parent: Path, ema: EMA, state: TrainingState, plan: BatchPlan, keep: int) -> Bundle:
    """Copy the power-function averages to CPU memory in fp16; every rank calls it."""
    folder = parent / f"samples-{state.samples:012d}"
    prepare(folder)
    copies = {
        name: piece.to("cpu", torch.float16, copy=True)
        for name, piece in ema.state().items()
        if not name.startswith(f"{HALF_LIFE}/")
    }
    reached, batch, planned = state.samples, plan.global_batch, plan.steps * plan.global_batch

    def committed() -> None:
        distance = interval(reached, planned, keep)
        grid = [path for path in complete(parent) if (at := samples_of(path)) // distance > (at - batch) // distance]
        keep_only(parent, [*grid, folder])

    return Bundle(folder, {folder / pieces.file_name(): partial(save_file, copies)}, committed)


def samples_of(folder: Path) -> int:
    """Return the samples seen at a snapshot, from its name."""
    return int(folder.name.removeprefix("samples-"))
