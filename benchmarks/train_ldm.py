"""Images per second of our diffusion training step against plain loops over the same U-Net, batch and precision.

    ours      latent shards, noise and timesteps from the workers, DeepSpeed engine, EMA
    latents   the same latents, layout, fused AdamW and EMA in a plain torch loop: what the DeepSpeed engine costs
    images    a loop after the diffusers unconditional example: the image folder through torchvision's transforms,
              VQ-VAE encoding at every step, fp32 weights with autocast where a precision is given, diffusers' EMAModel.
              Its AdamW is not fused on a CPU, as in the example; on a GPU it is, to this loop's advantage

The three take turns in one process; the table shows medians. Networks are untrained: the work is the same.

    python benchmarks/train_ldm.py                          # the demo's U-Net at 64 pixels
    python benchmarks/train_ldm.py --config gpu-80gb --compile
    python benchmarks/train_ldm.py --config gpu-6gb --mixed_precision fp16 --only    # ours alone
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mdaug import cli, distributed
from mdaug.models.vqvae import build_vqvae, load_vqvae, save_vqvae
from mdaug.radar.options import SimulateConfig
from mdaug.radar.simulate import run as simulate
from mdaug.training.batches import BatchPlan, plan_batches
from mdaug.training.checkpoint import TrainingState
from mdaug.training.deepspeed_json import deepspeed_config
from mdaug.training.encode import encode
from mdaug.training.engine import Engine, resolve_precision
from mdaug.training.ldm_task import LDMTask
from mdaug.training.options_ldm import LDMConfig
from mdaug.training.options_vqvae import EncodeConfig
from shards import provenance
from shards.options import PackConfig
from shards.order import PositionSampler
from shards.pack import run as pack

DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_images(root: Path, size: int, count: int) -> None:
    """Simulate `count` pictures of 256 x 256, as users bring them, to root/images and pack them at `size`."""
    simulate(SimulateConfig(root / "images", images_per_class=-(-count // 6), images_per_group=4))
    pack(PackConfig(root / "images", root / "packed", image_size=size))


def batches(task: LDMTask, plan: BatchPlan, workers: int) -> Iterator[dict]:
    sampler = PositionSampler(
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        rank=0,
        world_size=1,
        first_step=0,
        last_step=1_000_000,
    )
    pinned = distributed.device().type == "cuda"
    return iter(DataLoader(task.dataset, batch_sampler=sampler, num_workers=workers, pin_memory=pinned))


def ours(task: LDMTask, config: LDMConfig, plan: BatchPlan, precision: str) -> Callable[[], float]:
    if config.compile:
        task.compile()
    engine = Engine(task.module, config, deepspeed_config(config, plan, precision))
    stream, state = batches(task, plan, config.num_workers), TrainingState(global_batch=plan.global_batch)

    def step() -> float:
        waiting = time.perf_counter()
        batch = {name: value.to(engine.device, non_blocking=True) for name, value in next(stream).items()}
        waited = time.perf_counter() - waiting
        loss, _ = task.loss(engine, batch)
        engine.backward(loss)
        engine.step(config.lr)
        state.samples += plan.global_batch
        task.after_step(engine, state)
        return waited

    return step


def plain_optimizer(task: LDMTask, config: LDMConfig, fused: bool) -> torch.optim.Optimizer:
    task.module.to(distributed.device())
    return torch.optim.AdamW(
        task.module.parameters(), lr=config.lr, betas=config.adam_betas, weight_decay=config.weight_decay,
        fused=fused,
    )  # fmt: skip


def plain_latents(task: LDMTask, config: LDMConfig, plan: BatchPlan, precision: str) -> Callable[[], float]:
    device, dtype = distributed.device(), DTYPES[precision]
    if device.type == "cuda":  # as ours
        task.module.to(memory_format=torch.channels_last)
    optimizer, stream = plain_optimizer(task, config, fused=True), batches(task, plan, config.num_workers)
    average = [parameter.detach().clone() for parameter in task.module.parameters()]

    def step() -> float:
        waiting = time.perf_counter()
        batch = {name: value.to(device, non_blocking=True) for name, value in next(stream).items()}
        waited = time.perf_counter() - waiting
        with torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext():
            loss, _ = task.loss(task.module, batch)  # type: ignore[arg-type]  # the bare module in the engine's place
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, list(task.module.parameters()), 0.01)
        return waited

    return step


def plain_images(
    task: LDMTask, config: LDMConfig, plan: BatchPlan, precision: str, pictures: Path, vqvae: Path, size: int
) -> Callable[[], float]:
    device, dtype = distributed.device(), DTYPES[precision]
    encoder = load_vqvae(vqvae).to(device).requires_grad_(False)
    # The example's transforms without its random flip, which is not label-safe here.
    steps = [
        transforms.Resize(size),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(0.5, 0.5),
    ]
    loader = DataLoader(
        ImageFolder(str(pictures), transforms.Compose(steps)), plan.micro_batch, shuffle=True, drop_last=True,
        num_workers=config.num_workers, persistent_workers=config.num_workers > 0,
    )  # fmt: skip

    def endless() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from loader

    stream = endless()
    optimizer = plain_optimizer(task, config, fused=device.type == "cuda")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", clip_sample=False)
    average = EMAModel(task.module.parameters(), decay=0.9999)

    def step() -> float:
        waiting = time.perf_counter()
        pixels, labels = next(stream)
        waited = time.perf_counter() - waiting
        pixels, labels = pixels.to(device), labels.to(device)
        with torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext():
            with torch.no_grad():
                latents = encoder.encode(pixels).latents
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(latents),), device=device)
            prediction = task.module(scheduler.add_noise(latents, noise, timesteps), timesteps, labels).sample
        loss = functional.mse_loss(prediction.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.step(task.module.parameters())
        loss.item()  # the example logs the loss at every step
        return waited

    return step


def measure(step: Callable[[], float], steps: int, batch: int) -> tuple[float, float]:
    """Return (images per second, share of the time spent waiting for data)."""
    on_gpu = distributed.device().type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    waited = sum(step() for _ in range(steps))
    if on_gpu:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    return steps * batch / elapsed, waited / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--vqvae_config", help="default: that of --config")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--mixed_precision", default="auto")
    parser.add_argument("--zero_stage", type=int, default=0)
    parser.add_argument("--attention", help="another attention than the preset's, such as full")
    parser.add_argument("--compile", action="store_true", help="compile ours (torch.compile), not the others")
    parser.add_argument("--only", nargs="*", choices=["latents", "images"], help="contestants beside ours, or none")
    parser.add_argument("--steps", type=int, default=8, help="steps of one turn")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()

    device = distributed.init()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        common = ["--data_dir", str(root / "packed"), "--output_dir", str(root / "run")]
        vq = cli.parse("train-vqvae", ["--config", options.vqvae_config or options.config, *common])
        flags = ["--config", options.config, *common, "--vqvae_path", str(root / "vqvae")]
        flags += [f"--mixed_precision={options.mixed_precision}", f"--zero_stage={options.zero_stage}"]
        flags += [f"--compile={str(options.compile).lower()}"]
        flags += [f"--{name}={value}" for name in ("batch_size", "attention") if (value := getattr(options, name))]
        config = cli.parse("train-ldm", flags)
        assert isinstance(config.batch_size, int), "give --batch_size a number"
        assert isinstance(vq.image_size, int), "the plain loop wants square images"
        precision = resolve_precision(config.mixed_precision, device)
        make_images(root, vq.image_size, count=4 * config.batch_size)
        model = build_vqvae(
            image_channels=3, latent_channels=vq.latent_channels, num_codes=vq.vq_num_embed, n_layers=vq.n_layers,
            base_channels=vq.base_channels,
        ).eval()  # fmt: skip
        shape = [vq.image_size, vq.image_size, 3]
        save_vqvae(model, root / "vqvae", image_shape=shape, made_from={}, config={})
        encode(EncodeConfig(root / "packed", root / "vqvae", root / "latents"))

        def task() -> LDMTask:
            return LDMTask(config, root / "packed", root / "vqvae", root / "latents", {})

        plan = plan_batches(config, 4 * config.batch_size)
        flops = task().flops_per_sample
        size, pictures = vq.image_size, root / "images"
        contestants = {
            "ours": lambda: ours(task(), config, plan, precision),
            "latents": lambda: plain_latents(task(), config, plan, precision),
            "images": lambda: plain_images(task(), config, plan, precision, pictures, root / "vqvae", size),
        }
        others = ("latents", "images") if options.only is None else options.only
        steps = {name: contestants[name]() for name in ("ours", *others)}
        rates: dict[str, list[float]] = {name: [] for name in steps}
        waits: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(options.turns + 1):
            for name, step in steps.items():
                rate, wait = measure(step, options.steps, plan.global_batch)
                if turn:  # the first turn starts workers and warms caches
                    rates[name].append(rate)
                    waits[name].append(wait)

    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    memory = memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ratios = {name: statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True)) for name in rates}
    print(f"{'loop':10s}{'img/s':>9s}{'range':>18s}{'data wait':>11s}{'ours against it':>17s}")
    for name, values in rates.items():
        spread = f"{min(values):.1f}-{max(values):.1f}"
        wait = 100 * statistics.median(waits[name])
        print(f"{name:10s}{statistics.median(values):9.1f}{spread:>18s}{wait:9.1f} %{ratios[name]:16.2f}x")
    achieved = statistics.median(rates["ours"]) * (flops or 0) / 1e12
    print(f"ours computes {achieved:.2f} TFLOP/s; peak memory of the process, all its loops: {memory / 1e9:.2f} GB")
    card = {
        "benchmark": "train_ldm",
        "version": provenance.code_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "precision": precision,
        "batch": plan.global_batch,
        "gflop_per_sample": round((flops or 0) / 1e9, 3),
        "tflop_s": round(achieved, 3),
        "img_s": {name: round(statistics.median(values), 2) for name, values in rates.items()},
        "data_wait": {name: round(statistics.median(values), 4) for name, values in waits.items()},
        "ours_against": {name: round(value, 3) for name, value in ratios.items()},
        "peak_memory_gb": round(memory / 1e9, 2),
    }
    print(json.dumps(card))


if __name__ == "__main__":
    main()
