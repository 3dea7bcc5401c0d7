"""`mdaug ema`: an average of another length, from the snapshots of a finished training."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mdaug.artifacts import find_pipeline
from mdaug.pipeline.folder import save_pipeline
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.training import ema as averages
from mdaug.training import sharded_tensors
from mdaug.training.background_writer import Bundle, complete, keep_only, prepare, samples_of
from mdaug.training.batches import BatchPlan
from mdaug.training.checkpoint import TrainingState
from mdaug.training.ema import EMA, HALF_LIFE
from mdaug.training.options_ldm import EmaConfig
from mdaug.training.sharded_tensors import Reader
from shards import provenance
from shards.errors import UserError
from shards.validation import Preflight

FOLDER = "ema_snapshots"


def interval(samples: int, planned: int, keep: int) -> int:
    """Return the distance between snapshots, in samples, once `samples` of `planned` samples are seen."""
    distance = -(-planned // (4 * keep))
    while samples > keep * distance:
        distance *= 2
    return distance


def due(samples: int, plan: BatchPlan, keep: int) -> bool:
    """Return whether the step that ended at `samples` was the first to reach a point of the grid."""
    distance = interval(samples, plan.total_samples, keep)
    return samples // distance > (samples - plan.global_batch) // distance


def collect(parent: Path, ema: EMA, state: TrainingState, plan: BatchPlan, keep: int) -> Bundle:
    """Copy the power-function averages to CPU memory in fp16; every rank calls it."""
    folder = parent / f"samples-{state.samples:012d}"
    prepare(folder)
    copies = {
        name: shard.to("cpu", torch.float16, copy=True)
        for name, shard in ema.state().items()
        if not name.startswith(f"{HALF_LIFE}/")
    }
    reached, batch, planned = state.samples, plan.global_batch, plan.total_samples

    def committed() -> None:
        distance = interval(reached, planned, keep)
        grid = [path for path in complete(parent) if (at := samples_of(path)) // distance > (at - batch) // distance]
        keep_only(parent, [*grid, folder])

    return Bundle(folder, {folder / sharded_tensors.file_name(): partial(save_file, copies)}, committed)


POOR_FIT = 0.05  # of the norm of the wanted profile


def check(options: EmaConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else, or the run has no pipeline or no snapshots."""
    output = options.pipeline_dir
    record = provenance.load(output)
    if output.exists() and (record or {}).get("kind") != "pipeline":  # another average is replaced
        why = f"holds '{record['kind']}'" if record else f"has no readable {provenance.FILE_NAME}"
        raise UserError(f"{output} is there already and {why}; choose another --output_dir, or delete that folder")
    if where.inputs_there:
        find_pipeline(options.run_dir)
        _snapshots(options.run_dir)


def _snapshots(run_dir: Path) -> list[Path]:
    """Return the folders of the complete snapshots of a run; raises UserError where there are none."""
    provenance.require_whole(run_dir, FOLDER)
    folders = complete(run_dir / FOLDER)
    if not folders:
        raise UserError(f"{run_dir} holds no {FOLDER}; train with --ema_profiles [0.05,0.10]")
    return folders


def run(config: EmaConfig) -> Path:
    """Write the pipeline with the averaged weights, of the end of the training, and return its folder.

    Raises UserError if the run has no pipeline or no snapshots yet.
    """
    check(config, Preflight())
    pipeline_folder, origin = find_pipeline(config.run_dir)
    folders = _snapshots(config.run_dir)
    readers = [Reader(folder) for folder in folders]
    stored = [  # (reader, name of the average, samples seen)
        (reader, name, samples_of(folder))
        for folder, reader in zip(folders, readers, strict=True)
        for name in sorted({key.partition("/")[0] for key in reader.names()})
    ]
    times = np.array([samples for _, _, samples in stored])
    widths = np.array([float(name) for _, name, _ in stored])
    end = int(times.max())
    weights, error = averages.solve(times, widths, end, config.reconstruct)
    print(
        f"sigma_rel {config.reconstruct:g} at {end:,} samples from {len(folders)} snapshots of "
        f"{', '.join(f'{width:g}' for width in sorted(set(widths)))}: profile met to {100 * error:.2f} %"
    )
    if error > POOR_FIT:
        print("warning: that is a poor fit; choose a width nearer to those that were tracked")

    pipeline = MicroDopplerPipeline.from_pretrained(pipeline_folder)
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            total = torch.zeros(parameter.numel(), dtype=torch.float64)
            for weight, (reader, average, _) in zip(weights, stored, strict=True):
                total.add_(reader.read(f"{average}/{name}", parameter.numel()), alpha=float(weight))
            parameter.copy_(total.view_as(parameter))
    output = config.pipeline_dir
    settings = {**origin["config"], "ema_reconstructed": config.reconstruct}
    save_pipeline(pipeline, output, made_from=origin["made_from"], config=settings)
    print(f"wrote {output}")
    return output
