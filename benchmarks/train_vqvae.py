"""Images per second of our VQ-VAE training step against a plain torch loop over the same VQModel, batch and precision.

    ours            DeepSpeed engine, codes by EMA with restarts, floor detected, figures kept for the log
    plain           diffusers' VQModel with its own quantizer and loss, fp32 weights, autocast where a precision is
                    given, AdamW, torch's DataLoader
    perceptual      ours with LPIPS (its backbone untrained, which costs the same as the trained one)
    discriminator   ours with the PatchGAN from the first sample on

All take turns in one process; the table shows medians, and ratios of neighbouring turns. Networks are untrained.

    python benchmarks/train_vqvae.py                        # the demo's VQ-VAE at 64 pixels
    python benchmarks/train_vqvae.py --config gpu-80gb
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from train_ldm import DTYPES, make_images, measure

from mdaug import cli, distributed
from mdaug.images import to_tensor
from mdaug.models import perceptual
from mdaug.models.vqvae import build_vqvae
from mdaug.training import vqvae_task
from mdaug.training.batches import BatchPlan, plan_batches
from mdaug.training.checkpoint import TrainingState
from mdaug.training.deepspeed_json import deepspeed_config
from mdaug.training.engine import Engine, resolve_precision
from mdaug.training.loaders import loader, to_device
from mdaug.training.options_vqvae import VQVAEConfig
from shards import provenance
from shards.dataset import ShardDataset


def ours(config: VQVAEConfig, plan: BatchPlan, precision: str, packed: Path) -> Callable[[], float]:
    task = vqvae_task.VQVAETask(config, packed, {})
    if config.compile:
        task.compile()
    engine = Engine(task.module, config, deepspeed_config(config, plan, precision))
    state = TrainingState(global_batch=plan.global_batch)
    stream = iter(loader(task.dataset, config, dataclasses.replace(plan, steps=1_000_000), 0))
    task.prepare(engine)

    def step() -> float:
        waiting = perf_counter()
        batch = to_device(next(stream), engine.device)
        waited = perf_counter() - waiting
        loss, _ = task.loss(engine, batch)
        engine.backward(loss)
        engine.step(config.lr)
        state.samples += plan.global_batch
        state.step += 1
        task.after_step(engine, state)
        return waited

    return step


def plain(config: VQVAEConfig, plan: BatchPlan, precision: str, packed: Path) -> Callable[[], float]:
    device, dtype = distributed.device(), DTYPES[precision]
    images = ShardDataset(packed / "train")
    model = build_vqvae(
        image_channels=3, latent_channels=config.latent_channels, num_codes=config.vq_num_embed,
        n_layers=config.n_layers, base_channels=config.base_channels,
    ).to(device).train()  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)

    def collate(samples: list[dict]) -> torch.Tensor:
        return torch.stack([to_tensor(sample["image"]) for sample in samples])

    loader = DataLoader(
        images, plan.micro_batch, shuffle=True, drop_last=True, num_workers=config.num_workers, collate_fn=collate,
        persistent_workers=config.num_workers > 0,
    )  # fmt: skip

    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield from loader

    stream = endless()

    def step() -> float:
        waiting = perf_counter()
        pixels = next(stream)
        waited = perf_counter() - waiting
        pixels = pixels.to(device)
        with torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext():
            latents = model.encode(pixels).latents
            quantized, codebook_loss, _ = model.quantize(latents)
            reconstruction = model.decoder(model.post_quant_conv(quantized))
        loss = functional.mse_loss(reconstruction.float(), pixels) + codebook_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # as loops that print do
        return waited

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--mixed_precision", default="auto")
    parser.add_argument("--compile", action="store_true", help="compile ours (torch.compile)")
    parser.add_argument("--steps", type=int, default=4, help="steps of one turn")
    parser.add_argument("--turns", type=int, default=5)
    names = ["plain", "perceptual", "discriminator"]
    parser.add_argument("--only", nargs="*", choices=names, help="contestants beside ours, or none")
    options = parser.parse_args()

    device = distributed.init()
    vqvae_task.PerceptualLoss = partial(perceptual.PerceptualLoss, random_backbone=True)  # type: ignore
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "packed"
        flags = ["--config", options.config, "--data_dir", str(packed), "--output_dir", str(Path(scratch) / "run")]
        flags += [f"--mixed_precision={options.mixed_precision}", "--use_perceptual=false", "--save_images=false"]
        flags += [f"--compile={str(options.compile).lower()}"]
        flags += [f"--{name}={value}" for name in ("batch_size", "image_size") if (value := getattr(options, name))]
        config = cli.parse("train-vqvae", flags)
        assert isinstance(config.batch_size, int), "give --batch_size a number"
        assert isinstance(config.image_size, int), "the plain loop wants square images"
        precision = resolve_precision(config.mixed_precision, device)
        make_images(packed.parent, config.image_size, count=max(4 * config.batch_size, 64))
        plan = plan_batches(config, 4 * config.batch_size)
        contestants = {
            "ours": lambda: ours(config, plan, precision, packed),
            "plain": lambda: plain(config, plan, precision, packed),
            "perceptual": lambda: ours(dataclasses.replace(config, use_perceptual=True), plan, precision, packed),
            "discriminator": lambda: ours(
                dataclasses.replace(config, use_discriminator=True, disc_start=0), plan, precision, packed
            ),
        }
        wanted = ["ours", *(names if options.only is None else options.only)]
        steps = {name: contestants[name]() for name in wanted}
        rates: dict[str, list[float]] = {name: [] for name in steps}
        waits: dict[str, list[float]] = {name: [] for name in steps}
        memory = dict.fromkeys(steps, 0.0)
        for turn in range(options.turns + 1):
            for name, step in steps.items():
                held = torch.cuda.memory_allocated() if on_gpu else 0
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                rate, wait = measure(step, options.steps, plan.global_batch)
                if turn:  # the first turn starts workers and warms caches
                    rates[name].append(rate)
                    waits[name].append(wait)
                    memory[name] = (torch.cuda.max_memory_allocated() - held) / 1e9 if on_gpu else 0.0

    peak = torch.cuda.max_memory_reserved() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ratios = {name: statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True)) for name in rates}
    print(f"{'loop':15s}{'img/s':>9s}{'range':>18s}{'data wait':>11s}{'ours against it':>17s}{'step memory':>13s}")
    for name, values in rates.items():
        spread = f"{min(values):.1f}-{max(values):.1f}"
        wait = 100 * statistics.median(waits[name])
        holds = f"{memory[name]:.2f} GB" if on_gpu else "-"
        print(f"{name:15s}{statistics.median(values):9.1f}{spread:>18s}{wait:9.1f} %{ratios[name]:16.2f}x{holds:>13s}")
    print(f"peak memory of the process, all loops: {peak / 1e9:.2f} GB")
    card = {
        "benchmark": "train_vqvae",
        "version": provenance.code_version(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "precision": precision,
        "image_size": config.image_size,
        "batch": plan.global_batch,
        "img_s": {name: round(statistics.median(values), 2) for name, values in rates.items()},
        "data_wait": {name: round(statistics.median(values), 4) for name, values in waits.items()},
        "ours_against": {name: round(value, 3) for name, value in ratios.items()},
        "step_memory_gb": {name: round(value, 3) for name, value in memory.items()} if on_gpu else None,
        "peak_memory_gb": round(peak / 1e9, 2),
    }
    print(json.dumps(card))


if __name__ == "__main__":
    main()
