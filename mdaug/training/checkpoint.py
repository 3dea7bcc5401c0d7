"""Checkpoints: a folder per sample count, complete only when its marker is there.

    checkpoints/samples-000012800/engine/…          DeepSpeed's state, one shard per rank
                                  pieces/…           sharded tensors of the task (averages), one file per rank
                                  extra.safetensors  its replicated tensors (codebook, discriminator)
                                  state.json         counters, best score, number of ranks, ZeRO stage
                                  COMPLETE           written last, when all ranks have written the rest
"""  # fmt: skip

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mdaug import distributed
from mdaug.training import sharded_tensors
from mdaug.training.background_writer import Bundle, complete, keep_only, prepare
from mdaug.training.batches import flags_for
from mdaug.training.engine import Engine, to_host
from shards import atomic
from shards.errors import UserError

STATE_FILE, EXTRA_FILE, PIECES = "state.json", "extra.safetensors", "pieces"


@dataclass
class TrainingState:
    """Where a run stands; everything else follows from the sample count."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples seen."""
    global_batch: int = 0
    """Samples per optimizer step; a resumed run must have the same."""
    order: int = 1
    """Version of the order of the samples; a resumed run must have the same."""
    best_score: float = float("inf")
    """Lowest validation score so far."""
    best_samples: int = 0
    """Samples seen when it was reached."""
    lowest: dict[str, float] = field(default_factory=dict)
    """Lowest value so far of each validation figure that early stopping watches."""
    stale_validations: int = 0
    """Validations since any of these fell."""
    figures: dict[str, float] = field(default_factory=dict)
    """Those of the last validation, which the card of the model holds."""
    validated: int = 0
    """Samples seen at the last validation."""
    averaged: int = 0
    """Samples seen when the averages of the weights last followed them."""


def collect(
    parent: Path,
    engine: Engine,
    state: TrainingState,
    replicated: dict[str, torch.Tensor],
    sharded: dict[str, torch.Tensor],
    keep: int,
) -> Bundle:
    """Copy all that a checkpoint holds to CPU memory; every rank calls it.

    Args:
        parent: `checkpoints/` of the run.
        engine: its weights and optimizer state.
        state: counters.
        replicated: tensors equal on all ranks; rank 0 writes them.
        sharded: this rank's shards of tensors that are divided over the ranks.
        keep: complete checkpoints that stay when this one is.
    """
    folder = parent / f"samples-{state.samples:012d}"
    prepare(folder)
    files = engine.snapshot(folder)
    if sharded:
        (folder / PIECES).mkdir(exist_ok=True)
        files[folder / PIECES / sharded_tensors.file_name()] = partial(save_file, to_host(sharded))
    if distributed.is_main():
        whole = {name: tensor.contiguous() for name, tensor in to_host(replicated).items()}
        record = {
            **asdict(state),
            "skipped": int(engine.skipped),
            "skipped_in_a_row": int(engine.skipped_in_a_row),
            "loss_scale": engine.loss_scale(),
            "ranks": distributed.world_size(),
            "zero_stage": engine.stage,
        }
        text = json.dumps(record, indent=2) + "\n"
        files |= {
            folder / EXTRA_FILE: partial(save_file, whole),
            folder / STATE_FILE: lambda path: path.write_text(text),
        }

    def committed() -> None:
        if distributed.is_main():
            atomic.write_text(parent.parent / "latest", folder.name + "\n")
        prune(parent, keep)

    return Bundle(folder, files, committed)


def note_validation(parent: Path, state: dict[str, Any]) -> None:
    """Tell the checkpoint of a step, which was written before its validation, the state (as a dict) after that."""
    if distributed.is_main():
        path = parent / f"samples-{state['samples']:012d}" / STATE_FILE
        record = json.loads(path.read_text(encoding="utf-8"))
        atomic.write_text(path, json.dumps(record | state, indent=2) + "\n")


def latest(parent: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    return next(reversed(complete(parent)), None)


def is_best(path: Path) -> bool:
    """Return whether the weights of a complete checkpoint were the best ones so far."""
    record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return record["best_samples"] == record["samples"]


def prune(parent: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and every incomplete one."""
    keep_only(parent, complete(parent)[-keep:])


def needs_conversion(path: Path | None, stage: int) -> bool:
    """Return whether a checkpoint was written by another number of ranks or under another ZeRO stage."""
    if path is None:
        return False
    record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return record["zero_stage"] != stage or (stage > 0 and record["ranks"] != distributed.world_size())


def load(path: Path, engine: Engine, state: TrainingState, micro_batch: int = 1) -> dict[str, torch.Tensor]:
    """Restore engine and state from a complete checkpoint; return the task's replicated tensors (on the CPU).

    Raises UserError where the samples of a step would no longer be the same: the order is of another version, or the
    global batch differs. For this it names flags that restore it, with micro batches of at most `micro_batch` samples.
    """
    record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    if record["global_batch"] != state.global_batch:
        raise UserError(
            f"{path} was trained with a global batch of {record['global_batch']}, this run has {state.global_batch}; "
            f"{flags_for(record['global_batch'], distributed.world_size(), micro_batch)}"
        )
    if record.get("order", 1) != state.order:
        raise UserError(
            f"{path} was trained with the order of samples of another version of mdaug, and a resumed run would show "
            "some of them twice and others never; go on with that version, or choose another --output_dir"
        )
    engine.load(path)
    engine.skipped.fill_(record["skipped"])
    engine.skipped_in_a_row.fill_(record["skipped_in_a_row"])
    engine.load_loss_scale(record["loss_scale"])
    for name in vars(state).keys() & record.keys():
        setattr(state, name, record[name])
    return load_file(path / EXTRA_FILE)
