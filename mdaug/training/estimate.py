"""`python -m launch plan --config FILE --nodes N`: what a training would take, before anybody waits in a queue.

The arithmetic is that of `mdaug.training.cost`; docs/scaling.md says how far it has been measured.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import yaml

from mdaug import cli, config
from mdaug.artifacts import load_geometry
from mdaug.training.options import EstimateConfig
from shards.errors import UserError
from shards.validation import height_width

FP32_SHARE = 1 / 16  # of the bf16 peak: fp32 runs outside of the tensor cores
COMMANDS = {"LDMConfig": "train-ldm", "VQVAEConfig": "train-vqvae"}


def plan(argv: list[str], flags: list[str]) -> int:
    """Print the estimate of a run.

    Args:
        argv: fields of `EstimateConfig`.
        flags: further flags of the training command, which win over its YAML.
    """
    asked = config.parse(EstimateConfig, argv, prog="python -m launch plan")
    print("\n".join(estimate(asked, training_config(asked.training, flags))))
    return 0


def training_config(path: Path, flags: list[str]) -> Any:
    """Return the training configuration of a YAML file; folders that it does not name are filled in."""
    if not path.is_file():
        raise UserError(f"--config {path} does not exist")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    command = COMMANDS.get(values.pop("command", ""), path.stem)
    values.pop("made_from", None)
    if command not in COMMANDS.values():
        raise UserError(f"--config {path}: its name must be train-vqvae.yaml or train-ldm.yaml, to tell what it trains")
    names = ["data_dir", "output_dir", *(["vqvae_path"] if command == "train-ldm" else [])]
    absent = [item for name in names if name not in values for item in (f"--{name}", f"({name} not given)")]
    config_class = cli.find(command).load_options()
    file = [item for name, value in values.items() for item in (f"--{name}", _plain(value))]
    return config.parse(config_class, [*absent, *file, *flags], prog=f"mdaug {command}")


def estimate(asked: EstimateConfig, training: Any) -> list[str]:
    """Return the lines to print; raises UserError for a global batch that does not divide."""
    from mdaug.training import cost, deepspeed_json, run_folder

    gpu, ranks = cost.GPUS[asked.gpu], asked.nodes * asked.gpus_per_node
    if training.batch_size == "auto":
        raise UserError("batch_size=auto is found by trying on the GPU; give a number: -- --batch_size 16")
    precision = {"auto": "fp16" if asked.gpu in ("V100", "T4") else "bf16"}.get(
        training.mixed_precision, training.mixed_precision
    )
    passes = run_folder.accumulation(training, ranks)
    samples, channels, classes = _data(asked, training.data_dir)
    load = cost.count(training, precision, channels, _latent_shape(asked, training), classes)
    how = cost.Sharding(deepspeed_json.stage_of(training), ranks, passes, precision)
    networks = cost.network_bytes(load.parameters, how, load.persistent) + load.beside
    networks += cost.average_bytes(load.parameters, load.averages, ranks)
    buffers = cost.buffer_bytes(load.parameters, how)
    total = (networks + load.activations + buffers) / 1e9

    global_batch = training.batch_size * ranks * passes
    flops = load.flops_per_sample * training.batch_size * passes
    peak = gpu.flops * (FP32_SHARE if precision == "no" else 1)
    speed = cost.ring_bandwidth(asked.gpus_per_node, asked.nodes, gpu.link_gb_s * 1e9, asked.network_gbit_s / 8 * 1e9)
    traffic = cost.traffic(load.parameters, how, load.persistent, averaged=load.averages > 0)
    time = cost.StepTime(flops / (asked.mfu * peak), traffic.sent(ranks) / speed if ranks > 1 else 0.0)
    steps = -(-(training.train_samples or training.epochs * samples) // global_batch)
    hours = steps * time.longest / 3600
    fits = "fits" if total < 0.9 * gpu.memory_gb else "does NOT fit"
    return [
        f"run        {load.parameters / 1e6:.1f} M parameters, ZeRO {how.stage}, {precision}; {steps:,} steps of "
        f"{global_batch} samples ({training.batch_size} x {ranks} GPUs x {passes} accumulation), {samples:,} images",
        f"memory     {total:.1f} GB of {gpu.memory_gb} GB per GPU, {fits}: networks and optimizer "
        f"{networks / 1e9:.1f}, activations {load.activations / 1e9:.1f}, communication {buffers / 1e9:.1f}; "
        "libraries take 1 to 2 more",
        f"step       {1e3 * time.longest:.1f} ms: {1e3 * time.computing:.1f} ms computing "
        f"({flops / 1e12:.2f} TFLOP per GPU), {1e3 * time.moving:.1f} ms moving {traffic.sent(ranks) / 1e9:.2f} GB if "
        "nothing of it is hidden",
        f"speed      {global_batch / time.longest:,.0f} img/s, {100 * time.efficiency:.0f} % of {ranks} single GPUs",
        f"time       {hours:.1f} hours, {hours * ranks:.1f} GPU-hours, without validation, pictures and waits for data",
        f"assumed    {asked.gpu}: {gpu.flops / 1e12:.0f} TFLOP/s peak (data sheet) x "
        f"{'1/16 for fp32 x ' if precision == 'no' else ''}{asked.mfu:g} MFU; "
        f"{gpu.link_gb_s:g} GB/s between GPUs, {asked.network_gbit_s:g} Gbit/s out of a machine; nothing was measured",
    ]


def _data(asked: EstimateConfig, data_dir: Path) -> tuple[int, int, int]:
    """Return images of the training set, channels and classes: of packed shards where they are, else as asked."""
    index = data_dir / "train" / "index.json"
    if not index.is_file():
        return asked.samples, asked.channels, asked.classes
    there = json.loads(index.read_text(encoding="utf-8"))
    images = sum(shard["nsamples"] for shard in there["shardlist"])
    return images, there["image_shape"][2], len(there["classes"])


def _latent_shape(asked: EstimateConfig, training: Any) -> list[int]:
    """Return (c, h, w): of the VQ-VAE where it is, else of the preset's train-vqvae.yaml, else three halvings."""
    if not hasattr(training, "vqvae_path"):
        return []
    with contextlib.suppress(UserError):  # the VQ-VAE need not be trained yet
        return load_geometry(training.vqvae_path)["latent_shape"]
    beside = asked.training.with_name("train-vqvae.yaml")
    halvings = training_config(beside, []).n_layers if beside.is_file() else 3
    return [training.latent_channels, *(side >> halvings for side in height_width(training.image_size))]


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | bool) or value is None else str(value)
