"""Options that all trainings share, and those of `mdaug estimate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from shards.validation import at_least, height_width, one_of, operational, within, written

# Whose figures mdaug/training/cost.py has.
GPUS = ("H200", "H100", "A100", "L40S", "L40", "A10", "V100", "T4", "H100 PCIe", "H100 NVL")
# Files in deepspeed_configs/ of earlier versions, which had one for each precision.
OLD_JSON = re.compile(r"(zero[0-3](?:_offload)?)_(fp32|bf16|fp16)\.json")


@dataclass
class TrainingConfig:
    """Options of both training commands."""

    data_dir: Path = operational()
    """Packed shards, or an image folder `root/<class>/*.png` that is packed once into a cache."""
    output_dir: Path = operational()
    """Run folder. The same command again resumes it."""
    aux_dir: Path | list[Path] | None = operational(None)
    """Auxiliary images of other persons, sites or simulations, which train and never validate: packed shards or image
    folders, several with commas between."""
    aux_share: float = 0.5
    """Share of each batch that they take."""
    balance_classes: bool = False
    """Show small classes as often as large ones, among the images of data_dir and among the auxiliary ones."""
    init_from: Path | None = operational(None)
    """Run or model folder of an earlier training whose weights this one starts from, of the same architecture."""
    image_size: int | str = 256
    """Pixels of the images: one number for squares, or height x width such as 128x256."""
    group_by: str | None = None
    """How an image folder is split when it is packed here; see `mdaug pack --help`."""
    image_mode: Literal["auto", "rgb", "gray", "level"] = "auto"
    """Channels of an image folder that is packed here; gray trains on the level behind the colour map, level does so
    where the map is known."""
    colormap: str = "auto"
    """Colour map of that image folder; see `mdaug pack --help`."""
    batch_size: int | Literal["auto"] = operational(16)
    """Micro batch: samples that one device holds at once; auto: what fits into the GPU, 16 without one."""
    gradient_accumulation_steps: int = operational(1)
    """Micro batches per rank and optimizer step; ignored when --global_batch_size is given."""
    global_batch_size: int | None = operational(None)
    """Samples per optimizer step over all ranks; accumulation follows. Default: batch x ranks x accumulation."""
    epochs: int = 100
    """Passes over the training set."""
    train_samples: int | None = None
    """Length of the run in samples instead of epochs; good for presets that meet sets of any size."""
    train_minutes: float | None = None
    """Length of the run in minutes instead of epochs and train_samples: its speed is measured before the first step,
    the number of samples follows and is kept; validations and checkpoints come at least four times."""
    lr: float = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down; 0 switches clipping off."""
    max_skipped_steps: int = operational(20)
    """Steps in a row whose gradient is not finite (they are skipped and counted) after which the run stops."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = operational("auto")
    """auto: bf16 on GPUs that have it, fp16 on older ones, no on a CPU. no is fp32, but for convolutions on GPUs since
    Ampere, which round their inputs to TF32's 10 bits; NVIDIA_TF32_OVERRIDE=0 forbids it."""
    zero_stage: Literal[0, 1, 2, 3] = operational(0)
    """DeepSpeed ZeRO stage; picks deepspeed_configs/zero<stage>.json. 0 leaves it to --deepspeed_config."""
    deepspeed_config: Path | None = operational(None)
    """A DeepSpeed JSON of your own instead; "auto" values are filled in from this configuration."""
    val_epochs: int = 1
    """Validate every N epochs."""
    val_samples: int | None = None
    """Validate every N samples instead."""
    early_stop_patience: int = 3
    """Stop after this many validations without improvement; 0 never stops early."""
    save_epochs: int = operational(5)
    """Write a checkpoint every N epochs (one is always written at the end and when asked to stop)."""
    save_samples: int | None = operational(None)
    """Write a checkpoint every N samples instead."""
    keep_last: int = operational(1)
    """Checkpoints kept; the best model is kept apart, in best/."""
    save_images: bool = operational(False)
    """Write pictures during training."""
    logging_steps: int = operational(100)
    """Optimizer steps between log lines."""
    num_workers: int = operational(2)
    """Data loading processes per rank; 0 loads in the training process."""
    seed: int = 0
    """Seed of initial weights, sample order and noise."""
    use_wandb: bool = operational(False)
    """Also log to Weights & Biases (offline without a network)."""
    wandb_project: str = operational("mdaug")
    """Project name at Weights & Biases."""
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    ALIASES: ClassVar[dict[str, str]] = {"fp16": "mixed_precision=fp16"}

    def __post_init__(self) -> None:
        """Refuse values that cannot work; raises ValueError naming field, value and what is accepted."""
        self.image_size = written(*height_width(self.image_size))
        if isinstance(self.aux_dir, Path) and "," in str(self.aux_dir):
            self.aux_dir = [Path(name.strip()) for name in str(self.aux_dir).split(",")]
        if isinstance(self.aux_dir, list):
            self.aux_dir = [folder.expanduser() for folder in self.aux_dir]
        at_least(
            self, 1, "batch_size", "gradient_accumulation_steps", "global_batch_size", "epochs", "train_samples",
            "val_epochs", "val_samples", "save_epochs", "save_samples", "keep_last", "logging_steps",
            "max_skipped_steps",
        )  # fmt: skip
        at_least(self, 0, "weight_decay", "max_grad_norm", "early_stop_patience", "num_workers", "seed")
        within(self, "(0, 1]", "lr")
        within(self, "(0, inf)", "train_minutes")
        within(self, "[0, 1)", "adam_betas")
        within(self, "(0, 1)", "aux_share")
        path = self.deepspeed_config
        if path is not None and not path.exists() and (old := OLD_JSON.fullmatch(path.name)):
            precision = "no" if old[2] == "fp32" else old[2]
            raise ValueError(
                f"deepspeed_config={path} does not exist: one file serves every precision now; "
                f"use {path.with_name(old[1] + '.json')} with --mixed_precision {precision}"
            )
        if self.global_batch_size is not None and self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} and "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} exclude each other: "
                "accumulation follows from the global batch"
            )


@dataclass
class EstimateConfig:
    """Memory, step time, hours and GPU-hours of a training run, estimated; nothing is started."""

    command: Literal["train-ldm", "train-vqvae", "distil"]
    """Training command; also as the first argument."""
    training: Path | None = None
    """--config: a preset, or config.yaml of a run; default: the defaults of the command."""
    flags: str = ""
    """Further flags of the training command in one text, such as --flags="--batch_size 16 --zero_stage 2"; they win."""
    nodes: int = 1
    """Number of machines."""
    gpus_per_node: int = 8
    """GPUs, and ranks, of each."""
    gpu: str = "H100"
    """Kind of GPU: H200, H100, A100, L40S, L40, A10, V100, T4, "H100 PCIe" or "H100 NVL"."""
    mfu: float = 0.3
    """Share of the GPU's peak that the networks are assumed to reach."""
    network_gbit_s: float = 400.0
    """What all network adapters of a machine send together, Gbit/s."""
    disk_gb_s: float = 2.0
    """What the storage gives to all machines together, GB/s."""
    samples_per_shard: int = 1000
    """Samples of a shard, if the configuration names no packed shards that exist."""
    samples: int = 10_000
    """Images of the training set, if the configuration names no packed shards that exist."""
    channels: int = 3
    """Channels of the images, likewise."""
    classes: int = 10
    """Number of classes, likewise."""

    ALIASES: ClassVar[dict[str, str]] = {"config": "training"}
    POSITIONAL: ClassVar[str] = "command"

    def __post_init__(self) -> None:
        """Refuse values that cannot be; raises ValueError naming field and value."""
        one_of(self, GPUS, "gpu")
        within(self, "(0, 1]", "mfu")
        within(self, "(0, inf)", "network_gbit_s", "disk_gb_s")
        at_least(self, 1, "nodes", "gpus_per_node", "samples", "samples_per_shard", "channels", "classes")
