"""Checkpoints: a folder per sample count, complete only when its marker is there.

    checkpoints/samples-000012800/engine/…          DeepSpeed's state, one share per rank
                                  extra.safetensors  EMA weights and what else the task keeps
                                  state.json         counters, best score, number of ranks, ZeRO stage
                                  COMPLETE           written last
"""  # fmt: skip

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mdaug.training import distributed
from mdaug.training.engine import Engine
from shards import provenance
from shards.errors import UserError

MARKER, STATE_FILE, EXTRA_FILE = "COMPLETE", "state.json", "extra.safetensors"


@dataclass
class TrainingState:
    """Where a run stands; everything else follows from the sample count."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples seen."""
    global_batch: int = 0
    """Samples per optimizer step; a resumed run must have the same."""
    best_score: float = float("inf")
    """Lowest validation score so far."""
    best_samples: int = 0
    """Samples seen when it was reached."""
    lowest: dict[str, float] = field(default_factory=dict)
    """Lowest value so far of each validation figure that early stopping watches."""
    stale_validations: int = 0
    """Validations since any of these fell."""


def save(folder: Path, engine: Engine, state: TrainingState, extra: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint; every rank calls it. Returns its folder.

    Without the marker the folder does not exist for `latest`, so a kill at any moment leaves the
    checkpoint before it in force.
    """
    target = folder / f"samples-{state.samples:012d}"
    if distributed.is_main():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    distributed.barrier()
    engine.save(target)
    if distributed.is_main():
        save_file({name: tensor.contiguous() for name, tensor in extra.items()}, target / EXTRA_FILE)
        record = {**asdict(state), "ranks": distributed.world_size(), "zero_stage": engine.stage}
        provenance.write_text(target / STATE_FILE, json.dumps(record, indent=2) + "\n")
    distributed.barrier()  # every rank's share is on disk
    if distributed.is_main():
        provenance.write_text(target / MARKER, "")
        provenance.write_text(folder.parent / "latest", target.name + "\n")
    distributed.barrier()
    return target


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    complete = [path for path in folder.glob("samples-*") if (path / MARKER).is_file()]
    return max(complete, key=lambda path: path.name, default=None)


def needs_conversion(path: Path | None, stage: int) -> bool:
    """Return whether a checkpoint was written by another number of ranks or under another ZeRO stage."""
    if path is None:
        return False
    record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return record["zero_stage"] != stage or (stage > 0 and record["ranks"] != distributed.world_size())


def load(path: Path, engine: Engine, state: TrainingState) -> dict[str, torch.Tensor]:
    """Restore engine and state from a complete checkpoint; return the task's extra tensors (on the CPU).

    Raises UserError where the global batch differs: the samples of a step would no longer be the same.
    """
    record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    if record["global_batch"] != state.global_batch:
        raise UserError(
            f"{path} was trained with a global batch of {record['global_batch']}, this run has {state.global_batch}; "
            f"add --global_batch_size {record['global_batch']} --gradient_accumulation_steps 1"
        )
    engine.load(path)
    for name in vars(state):
        setattr(state, name, record[name])
    return load_file(path / EXTRA_FILE)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and every incomplete one."""
    if not distributed.is_main():
        return
    complete = sorted(path for path in folder.glob("samples-*") if (path / MARKER).is_file())
    kept = set(complete[-keep:])
    for path in folder.glob("samples-*"):
        if path not in kept:
            (path / MARKER).unlink(missing_ok=True)  # first the marker: a half-deleted folder is never chosen
            shutil.rmtree(path)
