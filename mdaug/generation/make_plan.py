"""From options to a plan: inputs opened, counts, settings and conditions decided."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mdaug import distributed
from mdaug.artifacts import find_pipeline, find_vqvae
from mdaug.generation import counts
from mdaug.generation import plan as plans
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import Plan
from mdaug.pipeline import schedulers
from shards import provenance
from shards.colormap import COLORMAPS, detect
from shards.errors import UserError
from shards.validation import identity_of


def describe(of_pipeline: dict[str, Any] | None, fixed: dict[str, float]) -> dict[str, Any] | None:
    """Return what a plan keeps: {"fixed", "values"}, or None for a pipeline without conditions.

    Args:
        of_pipeline: {"names", "mean", "std", "values"} of the pipeline, or None.
        fixed: name -> value for all samples.

    Raises:
        UserError: a condition that the model does not know.
    """
    names = of_pipeline["names"] if of_pipeline else []
    for name in fixed:
        if name not in names:
            raise UserError(
                f"conditions names '{name}', which the model was not trained on; its conditions are: "
                f"{', '.join(names) or 'none (train-ldm --condition_on makes a model with conditions)'}"
            )
    if of_pipeline is None:
        return None
    values = {
        label: [dict(zip(names, row, strict=True)) for row in rows] for label, rows in of_pipeline["values"].items()
    }
    return {"fixed": fixed, "values": values}


def warnings(conditions: dict[str, Any] | None, classes: list[str]) -> list[str]:
    """Return a sentence for each fixed value that lies outside what a class was trained on."""
    found = []
    for name, value in (conditions or {"fixed": {}})["fixed"].items():
        for label in classes:
            there = [row[name] for row in (conditions or {})["values"][label] if row[name] is not None]
            low, high = min(there, default=math.nan), max(there, default=math.nan)
            if not there:
                found.append(f"no training image of {label} has a value of {name}; {name}={value:g} is new to it")
            elif not low <= value <= high:
                found.append(f"{name}={value:g} lies outside the training images of {label} ({low:g} to {high:g})")
    return found


def describes_samples(options: GenerateConfig) -> bool:
    """Return whether anything beside where and how is given, so that it has to agree with a plan."""
    return identity_of(options) != identity_of(GenerateConfig(options.ldm_path, options.output_dir))


SEEDS = 2**32  # that torch's CPU generator tells apart


def device() -> str:
    """Return the device of this process, "cpu" or "cuda:0"."""
    return str(distributed.device())


def open_folder(config: GenerateConfig) -> tuple[Path, dict]:
    """Return (pipeline folder, its provenance) after comparing a VQ-VAE given beside it."""
    source, made = find_pipeline(config.ldm_path)
    if config.vqvae_path is not None:
        folder = find_vqvae(config.vqvae_path)
        vqvae_hash = provenance.read(folder, "vqvae")["hash"]
        provenance.require_same("VQ-VAE", source, made["made_from"]["vqvae"], folder, vqvae_hash)
    return source, made


def wanted_plan(config: GenerateConfig, kind: str) -> Plan:
    """Return the plan that a configuration follows: a new one, or that of its folder where it describes no samples.

    Raises:
        UserError: as `make_plan`, or there is nothing to finalize.
    """
    from mdaug.generation import real_images

    folder = config.output_dir
    if (folder / plans.FILE_NAME).is_file() and not describes_samples(config):
        plan = plans.read_plan(folder)
        if config.include_real:
            real_images.require(plan, config.include_real, folder)
        return plan
    if config.step == "finalize" and not (folder / plans.FILE_NAME).is_file():
        raise UserError(f"{folder} holds no {plans.FILE_NAME}; start with: mdaug generate --step plan")
    return make_plan(config, kind)


def make_plan(config: GenerateConfig, kind: str) -> Plan:
    """Return the plan of a configuration for a kind of device, "cpu" or "cuda".

    Raises:
        UserError: what the configuration asks for does not fit the model, the real images or the machine.
    """
    from mdaug.generation import real_images

    if kind == "cpu":
        require_cpu_compatible(config)
    source, made = open_folder(config)
    about = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    noise = json.loads((source / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    name = config.scheduler_type or (schedulers.sampler_of(config.quality, noise) if config.quality else None)
    name = schedulers.fitting(about["scheduler"][1], noise, name, config.beta_schedule)
    try:
        schedulers.validate_steps(name, config.steps, noise["num_train_timesteps"])
    except ValueError as error:
        raise UserError(str(error)) from None
    classes, image_shape = about["classes"], about["image_shape"]
    colormap, floor = (about.get("colormap") or {}).get("name"), about.get("floor")
    if config.output_format == "npy" and image_shape[2] == 3 and (floor is None or detect(floor) is None):
        raise UserError(
            f"--format npy needs the level behind a colour, and the colour map of what {source} makes is not known "
            "(its training images are in colour, and their most frequent colour is the floor of none of "
            f"{', '.join(COLORMAPS)}); pack the images with --image_mode gray, with --colormap where the map is known, "
            "and train on them, or take another --format"
        )
    images = made["made_from"]["images"]
    assert not isinstance(config.conditions, str)
    mixed = real_images.describe(config.include_real, classes, image_shape, colormap) if config.include_real else None
    plan = Plan(
        counts=_counts(config, classes),
        seed=config.seed,
        pipeline=made["hash"],
        images=images,
        image_shape=image_shape,
        colormap=colormap,
        floor=floor,
        scheduler_type=name,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance_scale,
        guidance_interval=list(config.guidance_interval),
        mixed_precision=config.mixed_precision,
        batch_size=config.batch_size,
        samples_per_shard=config.samples_per_shard,
        device=kind,
        cpu_threads=config.cpu_threads,
        compile=config.compile,
        output_format=config.output_format,
        dynamic_range_db=config.dynamic_range_db,
        include_real=mixed,
        sift=_sift_settings(config, images),
        conditions=describe(about.get("conditions"), config.conditions or {}),
    )
    if plan.total * (config.max_candidates if config.sift else 1) > SEEDS:
        raise UserError(
            f"{plan.total} samples are more than there are seeds (2^32, candidates counted); make several sets"
        )
    return plan


def require_cpu_compatible(config: GenerateConfig) -> None:
    """Raise UserError for what only a GPU can do: fp16, compilation, and going on with a plan that is for GPUs."""
    folder = config.output_dir
    if config.mixed_precision == "fp16":
        raise UserError("mixed_precision=fp16 needs a GPU, and there is none; use bf16 or no")
    if config.compile:
        raise UserError("--compile is for a GPU, and there is none; leave it out")
    unfinished = (folder / plans.FILE_NAME).is_file() and not (folder / provenance.FILE_NAME).is_file()
    if unfinished and config.step in ("all", "work") and plans.read_plan(folder).device == "cuda":
        raise UserError(f"the plan of {folder} is for GPUs; go on with them, or choose another --output_dir")


def _sift_settings(config: GenerateConfig, images: str) -> dict | None:
    if config.sift is None:
        return None
    from mdaug.measures import sifter

    return sifter.describe(
        config.sift,
        images,
        quantile=config.sift_quantile,
        steps=config.sift_steps,
        max_candidates=config.max_candidates,
    )


def prepare(plan: Plan, config: GenerateConfig, worker: int) -> None:
    """Make what workers share, in the folder of the plan: the shards of real images (worker 0), the sifter."""
    finished = (config.output_dir / provenance.FILE_NAME).is_file()
    if config.include_real and worker == 0 and (config.repair or not finished):
        from mdaug.generation import real_images

        real_images.write_shards(plan, config.include_real, config.output_dir)
    if plan.sift and config.step == "plan":
        from mdaug.measures import sifter

        sifter.prepare(config.output_dir, plan.sift, config.sift)


def print_plan(plan: Plan, folder: Path) -> None:
    """Print what will be made, and what is known to go badly."""
    wanted = ", ".join(f"{name} {count}" for name, count in plan.counts.items() if count)
    print(f"{plan.total} samples in {plan.num_shards} shards to {folder}: {wanted}", flush=True)
    made = [name for name, count in plan.counts.items() if count]
    for warning in (
        *schedulers.warnings(plan.scheduler_type, plan.num_inference_steps, plan.guidance_scale),
        *warnings(plan.conditions, made),
    ):
        print(f"warning: {warning}", flush=True)


def _counts(config: GenerateConfig, known: list[str]) -> dict[str, int]:
    asked: Any = config.per_class or config.fill or config.classes or known
    counts.require_known(asked, known)
    there = config.balance_to or config.include_real
    have = counts.of_real(there) if there else {}
    counts.require_known(have, known)
    assert not isinstance(config.fill, str)
    if isinstance(config.per_class, dict):
        return {name: config.per_class.get(name, 0) for name in known}
    if config.balance_to or config.fill:
        wanted = counts.filled(known, have, balance=config.balance_to is not None, fill=config.fill or {})
        if not sum(wanted.values()):
            there_are = ", ".join(f"{name} {count}" for name, count in have.items())
            raise UserError(f"nothing to make: {there} has {there_are}; ask for more with --fill or --num_samples")
        return wanted
    return counts.even(config.num_samples or counts.DEFAULT_SAMPLES, list(asked), known, have)
