"""`mdaug estimate`: what a training would take, before it waits in a queue.

The arithmetic is that of `mdaug.training.cost`; docs/scaling.md says how far it has been measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import warnings
from pathlib import Path
from typing import Any

import torch

from mdaug import cli
from mdaug.artifacts import load_geometry
from mdaug.models.discriminator import PatchDiscriminator
from mdaug.models.perceptual import PerceptualLoss
from mdaug.training import cost, workload
from mdaug.training.batches import accumulation
from mdaug.training.consistency import PASSES, denoiser_options
from mdaug.training.data_cost import DataCost
from mdaug.training.deepspeed_json import stage_of
from mdaug.training.ldm_task import build_unet
from mdaug.training.options import EstimateConfig, TrainingConfig
from mdaug.training.options_ldm import DistilConfig, LDMConfig
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.vqvae_task import build_module, perceptual_precision
from shards.errors import UserError
from shards.index import read_index
from shards.order import epoch_length
from shards.validation import height_width

NPY_HEADER = 128  # bytes before the numbers of a latent
FP32_SHARE = 1 / 16  # of the bf16 peak: fp32 runs outside of the tensor cores


def run(options: EstimateConfig) -> None:
    """Print the estimate of a run; raises UserError for options that no training takes."""
    print("\n".join(estimate(options, training_options(options, options.command, options.flags))))


def training_options(options: EstimateConfig, command: str, flags: str = "") -> Any:
    """Return the options of a training command from the file of `--config` and flags; folders may be left out."""
    of_command = {"train-ldm": ["vqvae_path"], "distil": ["vqvae_path", "ldm_path"]}.get(command, [])
    argv = [f"--{name}=(not given)" for name in ("data_dir", "output_dir", *of_command)]
    if options.training is not None:
        argv += ["--config", str(options.training)]
    return cli.parse(command, [*argv, *shlex.split(flags)])


def estimate(options: EstimateConfig, training: TrainingConfig) -> list[str]:
    """Return the lines to print; raises UserError for a global batch that does not divide."""
    # How the training is divided over the GPUs.
    gpu, ranks = cost.GPUS[options.gpu], options.nodes * options.gpus_per_node
    if training.batch_size == "auto":
        raise UserError('batch_size=auto is found by trying on the GPU; give a number: --flags "--batch_size 16"')
    precision = {"auto": "fp16" if options.gpu in ("V100", "T4") else "bf16"}.get(
        training.mixed_precision, training.mixed_precision
    )
    passes = accumulation(training, ranks)
    how = cost.Sharding(stage_of(training), ranks, passes, precision)
    samples, channels, classes = _data(options, training.data_dir)
    epoch = epoch_length(samples, training.aux_share) if training.aux_dir else samples

    # Memory. A distilled network makes the target of its loss, too, and keeps nothing of that pass.
    denoiser = _denoiser(options, training)
    if denoiser is not None:
        load = ldm_workload(denoiser, precision, _latent_shape(options, denoiser), classes)
    else:
        assert isinstance(training, VQVAEConfig)
        load = vqvae_workload(training, precision, channels)
    if isinstance(training, DistilConfig):
        load = dataclasses.replace(load, flops_per_sample=PASSES * load.flops_per_sample)
    memory = cost.memory(load, how)
    fits = "fits" if memory.total / 1e9 < 0.9 * gpu.memory_gb else "does NOT fit"

    # Time: of computing, and of what the ranks send each other.
    global_batch = int(training.batch_size) * ranks * passes
    flops = load.flops_per_sample * int(training.batch_size) * passes
    peak = gpu.flops * (FP32_SHARE if precision == "no" else 1)
    network, disk = options.network_gbit_s / 8 * 1e9, options.disk_gb_s * 1e9
    speed = cost.ring_bandwidth(options.gpus_per_node, options.nodes, gpu.link_gb_s * 1e9, network)
    traffic = cost.traffic(load.parameters, how, load.persistent, averaged=load.averages > 0)
    time = cost.StepTime(flops / (options.mfu * peak), traffic.sent(ranks) / speed if ranks > 1 else 0.0)
    read = _reading(options, training, denoiser, samples, channels)
    steps = -(-(training.train_samples or training.epochs * epoch) // global_batch)
    if training.train_minutes is not None:
        steps = max(1, int(60 * training.train_minutes / time.longest))
    hours = steps * time.longest / 3600
    return [
        f"run        {load.parameters / 1e6:.1f} M parameters, ZeRO {how.stage}, {precision}; {steps:,} steps of "
        f"{global_batch} samples ({training.batch_size} x {ranks} GPUs x {passes} accumulation), {samples:,} images",
        f"memory     {memory.total / 1e9:.1f} GB of {gpu.memory_gb} GB per GPU, {fits}: networks and optimizer "
        f"{memory.networks / 1e9:.1f}, activations {memory.activations / 1e9:.1f}, communication "
        f"{memory.buffers / 1e9:.1f}; "
        "libraries take 1 to 2 more",
        f"step       {1e3 * time.longest:.1f} ms: {1e3 * time.computing:.1f} ms computing "
        f"({flops / 1e12:.2f} TFLOP per GPU), {1e3 * time.moving:.1f} ms moving {traffic.sent(ranks) / 1e9:.2f} GB if "
        "nothing of it is hidden",
        f"speed      {global_batch / time.longest:,.0f} img/s, {100 * time.efficiency:.0f} % of {ranks} single GPUs",
        f"time       {hours:.1f} hours, {hours * ranks:.1f} GPU-hours, without validation, pictures and waits for data",
        f"data       {read.shards:,} shards of {read.samples_per_shard:,}; per machine {read.mapped / 1e9:.3f} GB "
        f"mapped and {options.gpus_per_node} x {read.memory(training.num_workers) / 1e9:.3f} GB; up to "
        f"{read.open_files(training.num_workers):,} open files per rank ({training.num_workers} workers)",
        f"reading    {global_batch * read.sample_bytes / 1e6:.1f} MB a step; an epoch takes "
        f"{epoch / global_batch * time.longest:,.0f} s of computing and {epoch * read.sample_bytes / disk:,.0f} s of "
        f"reading at {options.disk_gb_s:g} GB/s",
        f"assumed    {options.gpu}: {gpu.flops / 1e12:.0f} TFLOP/s peak (data sheet) x "
        f"{'1/16 for fp32 x ' if precision == 'no' else ''}{options.mfu:g} MFU; "
        f"{gpu.link_gb_s:g} GB/s between GPUs, {options.network_gbit_s:g} Gbit/s out of a machine; "
        "nothing was measured",
    ]


def _denoiser(options: EstimateConfig, training: TrainingConfig) -> LDMConfig | None:
    """Return the options of the diffusion model that is trained: of distil those of its pipeline, or, where that is not
    trained yet, of train-ldm in the same preset. None for a VQ-VAE.

    Raises UserError where neither is there.
    """
    if not isinstance(training, DistilConfig):
        return training if isinstance(training, LDMConfig) else None
    if training.ldm_path.exists():
        return denoiser_options(training)
    try:
        made: LDMConfig = training_options(options, "train-ldm")
    except UserError:
        raise UserError(
            f"the network to distil is not known: {training.ldm_path} does not exist, and {options.training} is not a "
            'preset with train-ldm; name a pipeline: --flags "--ldm_path runs/x/ldm"'
        ) from None
    names = ("batch_size", "image_size", "vqvae_path")
    return dataclasses.replace(made, ema_profiles=(), **{name: getattr(training, name) for name in names})


def ldm_workload(training: LDMConfig, precision: str, latent_shape: list[int], classes: int) -> cost.Workload:
    """Count the training of a diffusion model that is not built yet."""
    with torch.device("meta"):
        unet = build_unet(training, latent_shape, classes)
    return workload.unet_workload(
        unet, latent_shape, int(training.batch_size), precision, 1 + len(training.ema_profiles)
    )


def vqvae_workload(training: VQVAEConfig, precision: str, channels: int) -> cost.Workload:
    """Count the training of a VQ-VAE that is not built yet."""
    size = height_width(training.image_size)
    module, _ = build_module(training, channels)
    with warnings.catch_warnings():  # lpips calls torchvision in an old way
        warnings.simplefilter("ignore")
        perceptual = None
        if training.use_perceptual:
            of_lpips = perceptual_precision(training, precision)
            perceptual = PerceptualLoss(training.perceptual_net, precision=of_lpips, random_backbone=True)
    critic = PatchDiscriminator(channels, size, training.disc_channels) if training.use_discriminator else None
    return workload.vqvae_workload(module, [*size, channels], int(training.batch_size), precision, perceptual, critic)


def _data(options: EstimateConfig, data_dir: Path) -> tuple[int, int, int]:
    """Return images of the training set, channels and classes: of packed shards where they are, else as given."""
    if not (data_dir / "train" / "index.json").is_file():
        return options.samples, options.channels, options.classes
    index = read_index(data_dir / "train")
    return sum(shard["nsamples"] for shard in index["shardlist"]), index["image_shape"][2], len(index["classes"])


def _reading(
    options: EstimateConfig, training: TrainingConfig, denoiser: LDMConfig | None, samples: int, channels: int
) -> DataCost:
    """Return what is read: latents, or images, of packed shards as long as they are, else as their pixels."""
    per_shard = options.samples_per_shard
    if denoiser is not None:
        return DataCost(samples, per_shard, NPY_HEADER + 4 * math.prod(_latent_shape(options, denoiser)), 1)
    if (training.data_dir / "train" / "index.json").is_file():
        shards = read_index(training.data_dir / "train")["shardlist"]
        length = sum(shard["filesize"] for shard in shards) // samples
        return DataCost(samples, max(shard["nsamples"] for shard in shards), length, 2)
    assert isinstance(training, VQVAEConfig)
    return DataCost(samples, per_shard, math.prod(height_width(training.image_size)) * channels, 2)


def _latent_shape(options: EstimateConfig, training: LDMConfig) -> list[int]:
    """Return (c, h, w): of the VQ-VAE where it is, else of the VQ-VAE of the preset or of its defaults."""
    with contextlib.suppress(UserError):  # the VQ-VAE need not be trained yet
        return load_geometry(training.vqvae_path)["latent_shape"]
    try:
        n_layers = training_options(options, "train-vqvae").n_layers
    except UserError:
        n_layers = VQVAEConfig.n_layers
    return [training.latent_channels, *(side >> n_layers for side in height_width(training.image_size))]
