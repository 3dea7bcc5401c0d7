"""What every training command shares: its options, its batch arithmetic and its run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import yaml

from mdaug import config as configuration
from mdaug import distributed
from mdaug.training import deepspeed_json
from mdaug.training.options import TrainingConfig
from shards import atomic
from shards.errors import UserError
from shards.packed import packed_hash
from shards.validation import Preflight

CONFIG_FILE, FINISHED_FILE = "config.yaml", "FINISHED"

# Fields that may differ when a run is resumed: they change where and how fast it computes, not what.
OPERATIONAL = {
    "batch_size", "compile", "data_dir", "deepspeed_config", "ema_snapshots", "eval_steps", "global_batch_size",
    "gradient_accumulation_steps", "keep_last", "latents_dir", "logging_steps", "max_skipped_steps",
    "mixed_precision", "num_inference_steps", "num_workers", "output_dir", "perceptual_weights", "save_epochs",
    "save_images", "save_samples", "scheduler_type", "use_wandb",
    "vqvae_path", "wandb_project", "zero_stage",
}  # fmt: skip


def check(options: TrainingConfig, where: Preflight, made_from: dict[str, str]) -> None:
    """Refuse before the start what both trainings would refuse: batches, precision, DeepSpeed JSON, run folder.

    Raises UserError.
    """
    accumulation(options, where.ranks)
    if options.deepspeed_config is not None:
        deepspeed_json.check(options, where.ranks)
    if where.device is not None:
        distributed.require_gpu_for_fp16(options.mixed_precision, where.device)
    refuse_another_run(options, made_from)


def images_hash(options: TrainingConfig) -> dict[str, str]:
    """Return {"images": content hash}, or {} for images that are packed at the start of the run.

    Raises UserError for a packed folder that is not finished or does not fit.
    """
    content = packed_hash(options.data_dir, options.image_size, **packing(options))
    return {} if content is None else {"images": content}


def packing(config: TrainingConfig) -> dict[str, Any]:
    """Return how an image folder is packed for a training: the options of `open_packed`."""
    return {"group_by": config.group_by, "image_mode": config.image_mode, "colormap": config.colormap}


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step is divided: global_batch = micro_batch x ranks x accumulation."""

    global_batch: int
    micro_batch: int
    ranks: int
    accumulation: int
    steps: int
    """Optimizer steps of the whole run."""
    num_samples: int
    """Samples of the training set, that is, of one epoch."""
    val_every: int
    """Samples between validations."""
    save_every: int
    """Samples between checkpoints."""

    def due(self, every: int, step: int) -> bool:
        """Return whether optimizer step `step` (from 1) was the first to reach a multiple of `every` samples."""
        return step * self.global_batch // every > (step - 1) * self.global_batch // every


def accumulation(config: TrainingConfig, ranks: int) -> int:
    """Return the micro batches per rank and step; raises UserError with the numbers where none would do."""
    micro = 1 if config.batch_size == "auto" else config.batch_size
    if config.global_batch_size is None:
        return config.gradient_accumulation_steps
    if config.global_batch_size % (micro * ranks):
        raise UserError(
            f"global_batch_size={config.global_batch_size} does not divide into {ranks} rank(s) x "
            f"batch_size={config.batch_size} = {ranks * micro} samples per pass; choose a multiple of {ranks * micro} "
            "or another --batch_size"
        )
    return config.global_batch_size // (micro * ranks)


def plan_batches(config: TrainingConfig, num_samples: int) -> BatchPlan:
    """Divide the global batch over ranks and accumulation; raises UserError with the numbers where it cannot be."""
    ranks, micro = distributed.world_size(), config.batch_size
    passes = accumulation(config, ranks)
    global_batch = micro * ranks * passes
    return BatchPlan(
        global_batch=global_batch,
        micro_batch=micro,
        ranks=ranks,
        accumulation=passes,
        steps=-(-(config.train_samples or config.epochs * num_samples) // global_batch),
        num_samples=num_samples,
        val_every=config.val_samples or config.val_epochs * num_samples,
        save_every=config.save_samples or config.save_epochs * num_samples,
    )


def open_run(config: TrainingConfig, **made_from: str) -> bool:
    """Create or resume the run folder; return False if its run is finished already.

    Args:
        config: the resolved configuration, printed and saved as `config.yaml`.
        made_from: role -> content hash of what the run is made from; a resumed run must agree.

    Raises:
        UserError: if the folder holds another run; the message names every difference.
    """
    folder = config.output_dir
    refuse_another_run(config, made_from)
    if (folder / FINISHED_FILE).is_file():
        if distributed.is_main():
            print(f"{folder} is finished: {(folder / FINISHED_FILE).read_text(encoding='utf-8').strip()}")
        return False
    wanted = {**_identity(config), "made_from": made_from}
    distributed.barrier()
    if distributed.is_main():
        print(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True), flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written to; choose another --output_dir")
        # First of all, and all at once: a run killed right here is recognised as this run.
        atomic.write_text(folder / CONFIG_FILE, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
        for name in ("checkpoints", "logs"):
            (folder / name).mkdir(exist_ok=True)
    distributed.barrier()
    return True


def refuse_another_run(config: TrainingConfig, made_from: dict[str, str]) -> None:
    """Raise UserError where the run folder holds another run, or files of somebody else; touches nothing.

    Args:
        config: the configuration.
        made_from: role -> content hash of what the run is made from, as far as that is known.
    """
    folder, path = config.output_dir, config.output_dir / CONFIG_FILE
    if not path.is_file():
        if folder.is_dir() and any(p.name != "logs" and p.name[0] != "." for p in folder.iterdir()):
            raise UserError(
                f"{folder} is not empty and holds no mdaug run (no {CONFIG_FILE}); choose another --output_dir"
            )
        return
    saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    there, wanted = saved.pop("made_from", {}), _identity(config)
    pairs = {name: (saved.get(name), wanted.get(name)) for name in (saved.keys() | wanted.keys()) - OPERATIONAL}
    pairs |= {f"made from {role}": (there.get(role), content) for role, content in made_from.items()}
    differences = [f"{name}: {old} there, {new} now" for name, (old, new) in sorted(pairs.items()) if old != new]
    if differences:
        raise UserError(f"{folder} holds another run ({'; '.join(differences)}); choose another --output_dir")


def _identity(config: TrainingConfig) -> dict[str, Any]:
    return {"command": type(config).__name__, **configuration.as_dict(config)}


def finish_run(config: TrainingConfig, message: str) -> None:
    """Mark the run as finished, with the reason; the same command then says so and exits."""
    if distributed.is_main():
        atomic.write_text(config.output_dir / FINISHED_FILE, message + "\n")
