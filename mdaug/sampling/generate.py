"""`mdaug generate`: exactly the labelled samples asked for, as tar shards.

A plan fixes what is made; workers make its shards by a rule, skipping what is there; the last one to
finish checks the whole and writes the index. Workers are the ranks of the environment (RANK,
WORLD_SIZE, LOCAL_RANK) and need not know of each other.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mdaug import config as configuration
from mdaug.sampling import schedulers
from shards import provenance
from shards.errors import UserError

DEFAULT_SAMPLES = 16
PIPELINE_FOLDER = "vq_diffusion_pipeline"


@dataclass
class GenerateConfig:
    """Write labelled synthetic spectrograms as tar shards with index, manifest and provenance."""

    ldm_path: Path
    """Run folder of train-ldm (its best/ is taken) or a pipeline folder."""
    output_dir: Path
    """Folder of the data set. The same command again goes on where it stopped."""
    vqvae_path: Path | None = None
    """The VQ-VAE is part of the pipeline; a path given here is only checked to be the same."""
    num_samples: int | None = None
    """Number of samples, spread evenly over the classes, the remainder to the first ones (default 16)."""
    per_class: str | dict[str, int] | None = None
    """Samples of each class instead: fall=30,walk=20 or a mapping."""
    classes: str | list[str] | None = None
    """Names of the classes to make, such as fall,walk (default: all that the model knows)."""
    batch_size: int = 32
    """Images denoised together; it changes the images of a plan in the last bits."""
    samples_per_shard: int = 1000
    """Images in a tar. The shard is what a worker makes in one go."""
    num_inference_steps: int = 50
    """Steps of the sampler."""
    scheduler_type: str | None = None
    """ddpm, ddim, pndm, dpmsolver++, unipc, euler or heun (default: the one stored with the model)."""
    beta_schedule: str | None = None
    """linear, cosine or squaredcos_cap_v2; only checked to be that of the training."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is none and takes half the time."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Arithmetic of the networks."""
    seed: int = 42
    """Base seed; sample i has a seed of its own, listed in manifest.csv."""
    grid: bool = False
    """Also write grid.png, one row per class."""
    save_pipeline: bool | None = None
    """Also write the pipeline to <output_dir>/vq_diffusion_pipeline (asked when started on a terminal)."""
    cpu_threads: int = 1
    """Threads of a worker without a GPU. Sums depend on it, so it belongs to the plan; more workers scale better."""

    ALIASES: ClassVar[dict[str, str]] = {"vqvae_model_path": "vqvae_path", "fp16": "mixed_precision=fp16"}

    def __post_init__(self):
        if isinstance(self.per_class, str):
            self.per_class = _parse_counts(self.per_class)
        if isinstance(self.classes, str):
            self.classes = [name.strip() for name in self.classes.split(",")]
        if self.per_class is not None and (self.classes or self.num_samples is not None):
            raise ValueError("per_class says which classes and how many; leave out classes and num_samples")
        for name, count in (self.per_class or {}).items():
            if count < 1:
                raise ValueError(f"per_class asks for {count} of '{name}'; ask for at least 1, or leave the class out")
        if self.per_class is None and self.num_samples is None:
            self.num_samples = DEFAULT_SAMPLES
        for field in ("num_samples", "batch_size", "samples_per_shard", "num_inference_steps", "cpu_threads"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} is {value}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more (1 is no guidance)")
        schedulers.validate(self.scheduler_type or "ddim", self.beta_schedule or "linear")
        if self.scheduler_type:
            schedulers.validate_steps(self.scheduler_type, self.num_inference_steps)


def generate(config: GenerateConfig) -> None:
    """Make the samples of a configuration; see the module's docstring.

    Raises:
        UserError: folders that do not fit, classes that the model does not know, no space left.
    """
    import torch
    from diffusers.utils import logging

    from mdaug.sampling.finalize import finalize, write_grid
    from mdaug.sampling.pipeline import MicroDopplerPipeline
    from mdaug.sampling.pipeline_folder import find_pipeline, save_pipeline
    from mdaug.sampling.plan import Plan, claim_folder
    from mdaug.sampling.worker import missing_shards, work

    worker, workers = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and config.mixed_precision == "fp16":
        raise UserError("fp16 needs a GPU, and torch finds none here; use --mixed_precision bf16 or no")

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    source, made = find_pipeline(config.ldm_path)
    _check_vqvae(config, source, made)
    pipeline = MicroDopplerPipeline.from_pretrained(source)
    pipeline.scheduler = schedulers.scheduler_like(pipeline.scheduler, config.scheduler_type, config.beta_schedule)
    scheduler_type = schedulers.scheduler_type_of(pipeline.scheduler)
    try:
        schedulers.validate_steps(
            scheduler_type, config.num_inference_steps, pipeline.scheduler.config.num_train_timesteps
        )
    except ValueError as error:
        raise UserError(str(error)) from None

    plan = Plan(
        counts=_counts(config, pipeline.config.classes),
        seed=config.seed,
        pipeline=made["hash"],
        scheduler_type=scheduler_type,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        mixed_precision=config.mixed_precision,
        batch_size=config.batch_size,
        samples_per_shard=config.samples_per_shard,
        device=torch.device(device).type,
        cpu_threads=config.cpu_threads,
    )
    claim_folder(config.output_dir, plan)
    if worker == 0:
        counts = ", ".join(f"{name} {count}" for name, count in plan.counts.items() if count)
        print(f"{plan.total} samples in {plan.num_shards} shards to {config.output_dir}: {counts}", flush=True)
        if _wants_pipeline(config):
            settings = configuration.as_dict(config)
            save_pipeline(pipeline, config.output_dir / PIPELINE_FOLDER, made_from=made["made_from"], config=settings)

    if not (config.output_dir / provenance.FILE_NAME).is_file():
        work(plan, pipeline.to(device), config.output_dir, worker, workers)
        if workers > 1 and missing_shards(plan, config.output_dir):
            print(f"worker {worker} is done; the last worker to finish writes the index", flush=True)
            return
        finalize(
            plan,
            config.output_dir,
            made_from={"pipeline": made["hash"], "images": made["made_from"]["images"]},
            config=configuration.as_dict(config),
            image_shape=list(pipeline.config.image_shape),
            colormap=pipeline.config.colormap and pipeline.config.colormap["name"],
        )
    if config.grid and not (config.output_dir / "grid.png").is_file():
        write_grid(plan, config.output_dir)
    print(f"found {plan.total} = asked {plan.total}: {config.output_dir} is finished", flush=True)


def _counts(config: GenerateConfig, known: list[str]) -> dict[str, int]:
    from mdaug.sampling.plan import even_counts

    asked: Any = config.per_class or config.classes or known
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise UserError(f"the model knows no class {', '.join(unknown)}; it knows {', '.join(known)}")
    if isinstance(config.per_class, dict):
        return {name: config.per_class.get(name, 0) for name in known}
    assert config.num_samples is not None
    return even_counts(config.num_samples, list(dict.fromkeys(asked)), known)


def _parse_counts(text: str) -> dict[str, int]:
    counts = {}
    for part in text.split(","):
        name, _, count = part.rpartition("=")
        if not name or not count.strip().lstrip("-").isdigit():
            raise ValueError(f"per_class is '{text}'; write it as fall=30,walk=20")
        counts[name.strip()] = int(count)
    return counts


def _check_vqvae(config: GenerateConfig, source: Path, made: dict) -> None:
    """Refuse a --vqvae_path that is not the VQ-VAE of the pipeline."""
    if config.vqvae_path is None:
        return
    from mdaug.models.vqvae import find_vqvae

    folder = find_vqvae(config.vqvae_path)
    vqvae_hash = provenance.read(folder, "vqvae")["hash"]
    provenance.require_same("VQ-VAE", source, made["made_from"]["vqvae"], folder, vqvae_hash)


def _wants_pipeline(config: GenerateConfig) -> bool:
    """Ask, as the original command line did, but never where nobody can answer."""
    if config.save_pipeline is None and sys.stdin.isatty():
        return input("Create and save a custom pipeline? (y/n) ").strip().lower() in ("y", "yes")
    return bool(config.save_pipeline)
