"""What every training command shares: its options, its batch arithmetic and its run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from mdaug import config as configuration
from mdaug import distributed
from shards import atomic
from shards.errors import UserError
from shards.validation import height_width, written

CONFIG_FILE, FINISHED_FILE = "config.yaml", "FINISHED"

# Fields that may differ when a run is resumed: they change where and how fast it computes, not what.
OPERATIONAL = {
    "batch_size", "compile", "data_dir", "deepspeed_config", "ema_snapshots", "eval_steps", "global_batch_size",
    "gradient_accumulation_steps", "keep_last", "latents_dir", "logging_steps", "max_skipped_steps",
    "mixed_precision", "num_inference_steps", "num_workers", "output_dir", "perceptual_weights", "save_epochs",
    "save_images", "save_samples", "scheduler_type", "use_wandb",
    "vqvae_path", "wandb_project", "zero_stage",
}  # fmt: skip


def require_gpu_for_fp16(precision: str, kind: str) -> None:
    """Raise UserError for fp16 on "cpu"."""
    if precision == "fp16" and kind == "cpu":
        raise UserError("mixed_precision=fp16 needs a GPU: DeepSpeed refuses fp16 on a CPU; use no or bf16")


@dataclass
class TrainingConfig:
    """Options of both training commands."""

    data_dir: Path
    """Packed shards, or an image folder `root/<class>/*.png` that is packed once into a cache."""
    output_dir: Path
    """Run folder. The same command again resumes it."""
    image_size: int | str = 256
    """Pixels of the images: one number for squares, or height x width such as 128x256."""
    group_by: str | None = None
    """How an image folder is split when it is packed here; see `mdaug pack --help`."""
    image_mode: Literal["auto", "rgb", "gray", "level"] = "auto"
    """Channels of an image folder that is packed here; gray trains on the level behind the colour map, level does so
    where the map is known."""
    colormap: str = "auto"
    """Colour map of that image folder; see `mdaug pack --help`."""
    batch_size: int = 16
    """Micro batch: samples that one device holds at once."""
    gradient_accumulation_steps: int = 1
    """Micro batches per rank and optimizer step; ignored when --global_batch_size is given."""
    global_batch_size: int | None = None
    """Samples per optimizer step over all ranks; accumulation follows. Default: batch x ranks x accumulation."""
    epochs: int = 100
    """Passes over the training set."""
    train_samples: int | None = None
    """Length of the run in samples instead of epochs; good for presets that meet sets of any size."""
    lr: float = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down; 0 switches clipping off."""
    max_skipped_steps: int = 20
    """Steps in a row whose gradient is not finite (they are left out and counted) after which the run stops."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """auto: bf16 on GPUs that have it, fp16 on older ones, no (fp32) on CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage; picks deepspeed_configs/zero<stage>_<precision>.json. 0 leaves it to --deepspeed_config."""
    deepspeed_config: Path | None = None
    """A DeepSpeed JSON of your own instead; "auto" values are filled in from this configuration."""
    val_epochs: int = 1
    """Validate every N epochs."""
    val_samples: int | None = None
    """Validate every N samples instead."""
    early_stop_patience: int = 3
    """Stop after this many validations without improvement; 0 never stops early."""
    save_epochs: int = 5
    """Write a checkpoint every N epochs (one is always written at the end and when told to stop)."""
    save_samples: int | None = None
    """Write a checkpoint every N samples instead."""
    keep_last: int = 1
    """Checkpoints kept; the best model is kept apart, in best/."""
    save_images: bool = False
    """Write pictures during training."""
    logging_steps: int = 100
    """Optimizer steps between log lines."""
    num_workers: int = 2
    """Data loading processes per rank; 0 loads in the training process."""
    seed: int = 0
    """Seed of initial weights, sample order and noise."""
    use_wandb: bool = False
    """Also log to Weights & Biases (offline where there is no network)."""
    wandb_project: str = "mdaug"
    """Project name at Weights & Biases."""

    ALIASES: ClassVar[dict[str, str]] = {"fp16": "mixed_precision=fp16"}

    def __post_init__(self) -> None:
        """Refuse values that cannot work; raises ValueError naming field, value and what is accepted."""
        for name in (
            "batch_size", "gradient_accumulation_steps", "epochs", "lr", "val_epochs", "save_epochs",
            "keep_last", "logging_steps", "max_skipped_steps",
        ):  # fmt: skip
            if getattr(self, name) != "auto" and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        self.image_size = written(*height_width(self.image_size))
        for name in ("weight_decay", "max_grad_norm", "early_stop_patience", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or greater")
        for name in ("global_batch_size", "train_samples", "val_samples", "save_samples"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        if self.lr > 1:
            raise ValueError(f"lr={self.lr} must be at most 1")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas={self.adam_betas} must be 0 or greater and less than 1")
        if self.global_batch_size is not None and self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} and "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} exclude each other: "
                "accumulation follows from the global batch"
            )

    def check_ranks(self, ranks: int) -> None:
        """Raise UserError where the global batch cannot be divided over the ranks, or a DeepSpeed JSON contradicts."""
        accumulation(self, ranks)
        if self.deepspeed_config is not None:
            from mdaug.training import deepspeed_json

            deepspeed_json.check(self, ranks)

    def check_device(self, kind: str) -> None:
        """Raise UserError for a precision that a kind of device, "cpu" or "cuda", does not have."""
        require_gpu_for_fp16(self.mixed_precision, kind)

    def made_from(self) -> dict[str, str]:
        """Return role -> content hash of the inputs, without images that are packed at the start of the run.

        Raises UserError for inputs that are not finished or do not fit.
        """
        from shards.packed import packed_hash

        images = packed_hash(self.data_dir, self.image_size, **packing(self))
        return {} if images is None else {"images": images}

    def check_output(self, inputs_there: bool) -> None:
        """Raise UserError where output_dir holds another run, or inputs that are there do not fit."""
        refuse_another_run(self, self.made_from() if inputs_there else {})


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
