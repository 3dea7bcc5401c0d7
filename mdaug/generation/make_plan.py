"""From options to a plan: open the inputs, decide counts, sampler, settings and conditions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mdaug import distributed
from mdaug.artifacts import find_pipeline, find_vqvae
from mdaug.generation import counts, real_images, sources
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import Plan, read_plan
from mdaug.measures import sifter
from mdaug.pipeline import schedulers
from shards import provenance
from shards.colormap import COLORMAPS, detect
from shards.errors import UserError
from shards.output_folder import is_finished
from shards.validation import identity_of

SEEDS = 2**32  # of torch's CPU generator


def wanted_plan(options: GenerateConfig, device: str, gpu: str | None = None) -> Plan:
    """Return the plan that options ask for: a new one, or that of their folder where they describe no samples.

    Raises:
        UserError: as `make_plan`, or there is nothing to finalize.
    """
    folder = options.output_dir
    saved = read_plan(folder)
    if saved is None and options.step == "finalize":
        raise UserError(f"{folder} has no plan; start with: mdaug generate --step plan")
    if saved is None or identity_of(options) != identity_of(GenerateConfig(options.ldm_path, folder)):
        return make_plan(options, device, gpu)
    if options.include_real:
        real_images.require(saved, options.include_real, folder)
    if options.from_dir and options.step != "finalize":
        sources.require(saved, options, options.ldm_path)
    return saved


def make_plan(options: GenerateConfig, device: str, gpu: str | None = None) -> Plan:
    """Return the plan of options for a kind of device, "cpu" or "cuda", and a GPU (`distributed.gpu`).

    Raises:
        UserError: the options do not fit the model, the real images or the machine.
    """
    if device == "cpu":
        require_cpu_compatible(options)
    # The model: what it makes, and from what it was trained.
    source, made = open_pipeline(options)
    model = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    noise = json.loads((source / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    known, image_shape, images = model["classes"], model["image_shape"], made["made_from"]["images"]
    named = [*(options.per_class or ()), *(options.fill or ()), *(options.classes or ())]
    counts.require_known(named, known)
    auxiliary = [name for name in known if name in (model.get("auxiliary") or ())]
    target = [name for name in known if name not in auxiliary]
    classes = [*target, *(name for name in auxiliary if name in named)]  # these only where they are asked for
    colormap, floor = (model.get("colormap") or {}).get("name"), model.get("floor")
    if options.output_format == "npy":
        _require_levels(source, image_shape, floor)
    # What goes with it: real images beside the samples, a sifter, conditions.
    real = real_images.describe(options.include_real, target, image_shape, colormap) if options.include_real else None
    sift = None
    if options.sift and classes != target:
        raise UserError(
            f"sift knows the classes of {options.sift} alone, not the auxiliary class '{classes[-1]}'; leave out --sift"
        )
    if options.sift:
        sift = sifter.describe(
            options.sift,
            images,
            quantile=options.sift_quantile,
            steps=options.sift_steps,
            max_candidates=options.max_candidates,
        )
    assert not isinstance(options.conditions, str)
    sampler, steps = _sampler(options, model["scheduler"][1], noise)
    # What the samples begin with, if not with noise; a plan that is claimed has been looked through.
    redraw, packed = None, options.from_dir or Path()
    if options.from_dir:
        _require_steps(sampler, steps, options)
        packed = sources.open_sources(options, source)
        redraw = sources.describe(options, packed, image_shape, colormap)
        if read_plan(options.output_dir) is None:
            sources.refuse_held_out(options, packed, source, images)
    made_of = _counts(options, classes, redraw, packed)
    if redraw:
        sources.require_of_each_class([name for name, count in made_of.items() if count], redraw, packed)
    plan = Plan(
        counts=made_of,
        seed=options.seed,
        pipeline=made["hash"],
        images=images,
        image_shape=image_shape,
        colormap=colormap,
        floor=floor,
        scheduler_type=sampler,
        num_inference_steps=steps,
        guidance_scale=options.guidance_scale,
        guidance_interval=list(options.guidance_interval),
        mixed_precision=options.mixed_precision,
        batch_size=options.batch_size,
        samples_per_shard=options.samples_per_shard,
        device=device,
        cpu_threads=options.cpu_threads,
        compile=options.compile,
        output_format=options.output_format,
        dynamic_range_db=options.dynamic_range_db,
        include_real=real,
        sift=sift,
        conditions=_conditions(model.get("conditions"), options.conditions or {}),
        redraw=redraw,
        gpu=gpu,
    )
    # Every candidate of every sample has a seed of its own.
    if plan.total * (options.max_candidates if options.sift else 1) > SEEDS:
        raise UserError(
            f"{plan.total} samples are more than there are seeds (2^32, candidates counted); make several sets"
        )
    return plan


def require_cpu_compatible(options: GenerateConfig) -> None:
    """Raise UserError for what only a GPU can do: fp16, compilation, and continuing a plan that is for GPUs."""
    distributed.require_gpu_for_fp16(options.mixed_precision, "cpu")
    if options.compile:
        raise UserError("--compile is for a GPU, and there is none; leave it out")
    folder = options.output_dir
    saved = read_plan(folder) if options.step in ("all", "work") and not is_finished(folder) else None
    if saved is not None and saved.device == "cuda":
        raise UserError(f"the plan of {folder} is for GPUs; go on with them, or choose another --output_dir")


def open_pipeline(options: GenerateConfig) -> tuple[Path, dict]:
    """Return (pipeline folder, its provenance) after comparing a VQ-VAE given beside it."""
    source, made = find_pipeline(options.ldm_path)
    if options.vqvae_path is not None:
        vqvae = find_vqvae(options.vqvae_path)
        vqvae_hash = provenance.read(vqvae, "vqvae")["hash"]
        provenance.require_same("VQ-VAE", source, made["made_from"]["vqvae"], vqvae, vqvae_hash)
    return source, made


def print_plan(plan: Plan, folder: Path) -> None:
    """Print what will be made, and what is known to go badly."""
    made = {name: count for name, count in plan.counts.items() if count}
    listed = ", ".join(f"{name} {count}" for name, count in made.items())
    print(f"{plan.total} samples in {plan.num_shards} shards to {folder}: {listed}", flush=True)
    if plan.redraw:
        steps = plan.num_inference_steps
        done = ", ".join(f"{s:g} ({schedulers.steps_of(s, steps)} of {steps} steps)" for s in plan.redraw["strengths"])
        changed = "class kept" if plan.redraw["redraw_as"] == "keep" else "as any class"
        print(f"redrawn from {sum(plan.redraw['classes'].values())} images, {changed}, strength {done}", flush=True)
    for warning in (
        *schedulers.warnings(plan.scheduler_type, plan.num_inference_steps, plan.guidance_scale),
        *_condition_warnings(plan.conditions, list(made)),
    ):
        print(f"warning: {warning}", flush=True)


def _require_levels(source: Path, image_shape: list[int], floor: list[int] | None) -> None:
    """Refuse arrays in dB of pictures in colours whose map is not known."""
    if image_shape[2] == 3 and (floor is None or detect(floor) is None):
        raise UserError(
            f"--format npy needs the level behind a colour, and the colour map of what {source} makes is not known "
            "(its training images are in colour, and their most frequent colour is the floor of none of "
            f"{', '.join(COLORMAPS)}); pack the images with --image_mode gray, with --colormap where the map is known, "
            "and train on them, or take another --format"
        )


def _require_steps(sampler: str, steps: int, options: GenerateConfig) -> None:
    """Refuse a strength that leaves fewer steps than the sampler needs."""
    try:
        for strength in options.strengths:
            schedulers.validate_strength(sampler, steps, strength)
    except ValueError as error:
        raise UserError(str(error)) from None


def _counts(options: GenerateConfig, known: list[str], redraw: dict | None, packed: Path) -> dict[str, int]:
    """Return the number of samples of each class that the model knows; `redraw` describes the sources in `packed`."""
    assert not isinstance(options.fill, str)
    counts.require_known(options.per_class or options.fill or options.classes or known, known)
    source = options.balance_to or options.include_real
    real = counts.of_real(source) if source else {}
    counts.require_known(real, known)
    if isinstance(options.per_class, dict):
        return {name: options.per_class.get(name, 0) for name in known}
    if options.balance_to or options.fill:
        missing = counts.filled(known, real, balance=options.balance_to is not None, fill=options.fill or {})
        if not sum(missing.values()):
            listed = ", ".join(f"{name} {count}" for name, count in real.items())
            raise UserError(f"nothing to make: {source} has {listed}; ask for more with --fill or --num_samples")
        return missing
    chosen, samples = list(options.classes or known), options.num_samples
    if redraw:
        if redraw["redraw_as"] == "keep":
            chosen = list(options.classes or sources.kept_classes(redraw, known, packed))
            sources.require_of_each_class(chosen, redraw, packed)
            if samples is None:
                return {name: redraw["classes"][name] if name in chosen else 0 for name in known}
        samples = samples or sum(redraw["classes"].values())
    return counts.even(samples or counts.DEFAULT_SAMPLES, chosen, known, real)


def _sampler(options: GenerateConfig, scheduler_class: str, noise: dict[str, Any]) -> tuple[str, int]:
    """Return sampler and steps, after checking that they fit each other and the scheduler of the training."""
    of_quality, steps = schedulers.sampling_of(options.quality, scheduler_class, noise)
    steps = options.num_inference_steps or steps
    name = schedulers.fitting(scheduler_class, noise, options.scheduler_type or of_quality, options.beta_schedule)
    try:
        schedulers.validate_steps(name, steps, noise["num_train_timesteps"])
    except ValueError as error:
        raise UserError(str(error)) from None
    return name, steps


def _conditions(of_model: dict[str, Any] | None, fixed: dict[str, float]) -> dict[str, Any] | None:
    """Return what a plan keeps: {"fixed", "values"}, or None for a model without conditions.

    Args:
        of_model: {"names", "mean", "std", "values"} of the pipeline, or None.
        fixed: name -> value for all samples.

    Raises:
        UserError: a condition that the model does not know.
    """
    names = of_model["names"] if of_model else []
    for name in fixed:
        if name not in names:
            raise UserError(
                f"conditions names '{name}', which the model was not trained on; its conditions are: "
                f"{', '.join(names) or 'none (train-ldm --condition_on makes a model with conditions)'}"
            )
    if of_model is None:
        return None
    values = {label: [dict(zip(names, row, strict=True)) for row in rows] for label, rows in of_model["values"].items()}
    return {"fixed": fixed, "values": values}


def _condition_warnings(conditions: dict[str, Any] | None, classes: list[str]) -> list[str]:
    """Return a sentence for each fixed value that lies outside the training images of a class."""
    if conditions is None:
        return []
    found = []
    for name, value in conditions["fixed"].items():
        for label in classes:
            trained = [row[name] for row in conditions["values"][label] if row[name] is not None]
            low, high = min(trained, default=math.nan), max(trained, default=math.nan)
            if not trained:
                found.append(f"no training image of {label} has a value of {name}; {name}={value:g} is new to it")
            elif not low <= value <= high:
                found.append(f"{name}={value:g} lies outside the training images of {label} ({low:g} to {high:g})")
    return found
