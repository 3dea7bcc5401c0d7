"""Options of `mdaug generate`. Values and their checks, nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from mdaug.pipeline import schedulers
from shards.validation import at_least, one_of_workers, operational, within

DEFAULT_STRENGTH = 0.6


@dataclass
class GenerateConfig:
    """Write labelled synthetic spectrograms as tar shards with index, manifest and provenance."""

    ldm_path: Path = operational()
    """Run folder of train-ldm (its best/ is taken) or a pipeline folder."""
    output_dir: Path = operational()
    """Folder of the data set. The same command again goes on where it stopped."""
    step: Literal["all", "plan", "work", "finalize"] = operational("all")
    """plan: write run.json, which fixes what is made; work: make this worker's shards; finalize: look at every sample,
    write index and manifest. After plan, work and finalize need no more than ldm_path and output_dir."""
    vqvae_path: Path | None = operational(None)
    """Kept for compatibility with the original: the VQ-VAE is part of the pipeline; a path given here is only checked
    to be the same."""
    num_samples: int | None = None
    """Number of samples, spread evenly over the classes, the remainder to the first ones (default 16)."""
    per_class: str | dict[str, int] | None = None
    """Samples of each class instead: fall=30,walk=20 or a mapping."""
    classes: str | list[str] | None = None
    """Names of the classes to make, such as fall,walk (default: all that the model knows but auxiliary ones)."""
    balance_to: Path | None = None
    """Packed set (or JSON file of counts) whose classes are each filled up to its largest one."""
    fill: str | dict[str, int] | None = None
    """Totals to fill classes up to. ID_3=50: generate as many as are missing to reach 50, counting the images of
    balance_to or include_real."""
    include_real: Path | None = operational(None)
    """Packed set whose training images are put beside the synthetic ones; num_samples then evens the classes out."""
    from_dir: Path | None = operational(None)
    """Packed set, or image folder that is packed once, whose training images are redrawn instead of sampling from
    noise: noised to strength and denoised as a class. By default one sample of each image."""
    strength: float | list[float] | None = None
    """Share of the noise schedule, in (0, 1], to which the images of from_dir are noised, and of the steps that are
    done; several take turns, [0.4,0.6,0.8] (default: 0.6)."""
    redraw_as: Literal["keep", "random"] | None = None
    """With from_dir, the class of a sample. keep: that of its source (default); random: any of the classes that are
    made, whatever the source is."""
    data_dir: Path | None = operational(None)
    """With from_dir: packed set the model was trained on, whose held-out images are not redrawn (default: where it was
    at the training)."""
    output_format: Literal["shards", "folder", "npy"] = "shards"
    """folder: also images/<class>/*.png; npy: also arrays/<class>/*.npy, float32 in dB."""
    dynamic_range_db: float = 40.0
    """Decibels between the lowest and the highest level of the colour scale, for output_format npy."""
    batch_size: int = 32
    """Images denoised together; it changes the images of a plan in the last bits."""
    samples_per_shard: int = 1000
    """Images in a tar. The shard is what a worker makes in one go."""
    quality: Literal["draft", "standard", "best"] | None = None
    """Sampler and steps in one word; docs/sampling.md has what each costs."""
    num_inference_steps: int | None = None
    """Steps of the sampler (default: those of quality; else 50, of a distilled model 4)."""
    scheduler_type: str | None = None
    """ddpm, ddim, pndm, dpmsolver++, unipc, euler or heun; of a distilled model lcm (default: that of quality, or the
    one of the model)."""
    beta_schedule: str | None = None
    """Kept for compatibility with the original: linear, cosine or squaredcos_cap_v2, only checked to be that of the
    training."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is none and takes half the time."""
    guidance_interval: list[float] = dataclasses.field(default_factory=lambda: [0.0, 1.0])
    """Shares of the training timesteps, low and high, within which guidance acts; 1 is pure noise."""
    conditions: str | dict[str, float] | None = None
    """Continuous conditions of all samples, speed=1.2,aspect=30; those left out are drawn from real training images."""
    sift: Path | None = None
    """Packed set the model was trained on; images unlike its real ones are rejected and made again."""
    sift_quantile: float = 0.05
    """Share of real validation images that each of the four measures of the sifter may reject."""
    sift_steps: int = 400
    """Optimizer steps of the sifter's classifier."""
    max_candidates: int = 8
    """Images made for a sample before the best of the rejected ones is kept and marked."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Arithmetic of the networks; no is fp32, but for convolutions on GPUs since Ampere, which take TF32."""
    compile: bool = False
    """Run the U-Net through torch.compile; for a GPU."""
    seed: int = 42
    """Base seed; sample i has a seed of its own, listed in manifest.csv."""
    worker: int | None = operational(None)
    """Number of this worker, from 0, such as $SLURM_ARRAY_TASK_ID; the launcher's ranks count within it."""
    num_workers: int | None = operational(None)
    """Number of workers that share the samples, such as $SLURM_ARRAY_TASK_COUNT; by default this one makes all."""
    repair: bool = operational(False)
    """Look at the bytes of finished shards and make damaged ones again."""
    grid: bool = operational(False)
    """Also write grid.png, one row per class."""
    save_pipeline: bool = operational(False)
    """Also write the pipeline to <output_dir>/vq_diffusion_pipeline."""
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""
    cpu_threads: int = 1
    """Threads of a worker without a GPU. Sums depend on it, so it belongs to the plan; more workers scale better."""

    ALIASES: ClassVar[dict[str, str]] = {
        "vqvae_model_path": "vqvae_path",
        "fp16": "mixed_precision=fp16",
        "format": "output_format",
    }

    def __post_init__(self) -> None:
        """Refuse values that cannot be used; raises ValueError naming field, value and what is accepted."""
        # Text of the command line.
        self.per_class, self.fill = _counts("per_class", self.per_class), _counts("fill", self.fill)
        if isinstance(self.conditions, str):
            self.conditions = _conditions(self.conditions)
        if isinstance(self.classes, str):
            self.classes = [name.strip() for name in self.classes.split(",")]
        # Each for itself.
        at_least(self, 1, "num_samples", "batch_size", "samples_per_shard", "num_inference_steps")
        at_least(self, 1, "max_candidates", "sift_steps")
        at_least(self, 0, "seed", "guidance_scale")
        one_of_workers(self)
        within(self, "[1, 1024]", "cpu_threads")
        within(self, "(0, 0.5)", "sift_quantile")
        within(self, "(0, inf)", "dynamic_range_db")
        within(self, "[0, 1]", "guidance_interval")
        within(self, "(0, 1]", "strength")
        schedulers.validate(self.scheduler_type or "ddim", self.beta_schedule or "linear", "v_prediction")
        if self.scheduler_type and self.num_inference_steps is not None:
            schedulers.validate_steps(self.scheduler_type, self.num_inference_steps)
        # One against another.
        if len(self.guidance_interval) != 2 or self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(
                f"guidance_interval={self.guidance_interval} must be two rising shares, such as [0.1, 0.7]"
            )
        if self.per_class is not None and (self.classes or self.num_samples is not None):
            raise ValueError("per_class says which classes and how many; leave out classes and num_samples")
        if (self.balance_to or self.fill) and (self.per_class or self.classes or self.num_samples is not None):
            raise ValueError(
                "balance_to and fill say how many of each class; leave out per_class, classes and num_samples"
            )
        if self.from_dir is None and not (self.strength is self.redraw_as is self.data_dir is None):
            raise ValueError("strength, redraw_as and data_dir say how images are redrawn; say which with from_dir")
        if self.strength == []:
            raise ValueError("strength=[] must hold at least one number, such as [0.4, 0.6]")
        if self.repair and self.step in ("plan", "finalize"):
            raise ValueError(f"repair makes shards again, which step {self.step} does not; use step work or all")

    @property
    def strengths(self) -> list[float]:
        """The strengths that take turns."""
        given = DEFAULT_STRENGTH if self.strength is None else self.strength
        return list(given) if isinstance(given, list) else [given]


def _counts(field: str, value: str | dict[str, int] | None) -> dict[str, int] | None:
    """Return the counts of "fall=30,walk=20", or of a mapping; raises ValueError for other text and counts below 1."""
    if isinstance(value, str):
        counts = {}
        for part in value.split(","):
            name, _, count = part.rpartition("=")
            if not name or not count.strip().lstrip("-").isdigit():
                raise ValueError(f"{field}={value} must be written as fall=30,walk=20")
            counts[name.strip()] = int(count)
        value = counts
    for name, number in (value or {}).items():
        if number < 1:
            raise ValueError(f"{field}: {name}={number} must be at least 1; to make none, leave the class out")
    return value


def _conditions(text: str) -> dict[str, float]:
    """Return `speed=1.2,aspect=30` as a dict; raises ValueError for a part that is not name=number."""
    fixed: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            fixed[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"conditions={text} must be written as name=number, such as speed=1.2,aspect=30") from None
    return fixed
