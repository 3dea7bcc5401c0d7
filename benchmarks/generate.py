"""Images per second of `mdaug generate` beside a plain diffusers loop with the same weights, steps and precision.

The plain loop is what the diffusers examples do: one process, with a thread for each core, calls the pipeline with
batches of 4 and saves each image as a PNG file. Ours are the workers of `mdaug generate`: on a CPU one per core with
one thread each, on a GPU one. All is loaded and warm before the clock starts; ours and theirs take turns, and the
medians count. Lists of values make a sweep.

    python benchmarks/generate.py --pipeline runs/demo/ldm/best
    python benchmarks/generate.py --pipeline runs/demo/ldm/best --steps 10,20 --batch_size 8,32
    python benchmarks/generate.py --config gpu-80gb --mixed_precision bf16  # untrained
    python benchmarks/generate.py --config gpu-80gb --mixed_precision bf16 --scheduler_type lcm --steps 2  # distilled
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mdaug import cli
from mdaug.artifacts import find_pipeline
from mdaug.distributed import DTYPES, autocast
from mdaug.generation.counts import even
from mdaug.generation.plan import Plan, claim_folder
from mdaug.generation.worker import Done, make_shards
from mdaug.models.vqvae import build_vqvae
from mdaug.pipeline.folder import save_pipeline
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.pipeline.schedulers import LCM, build_scheduler, scheduler_like
from mdaug.training.cost import GPUS
from mdaug.training.ldm_task import build_unet
from shards.provenance import code_version
from shards.validation import height_width

PLAIN_BATCH = 4
SETTINGS = ("scheduler_type", "num_inference_steps", "mixed_precision", "batch_size")


def untrained(preset: str, folder: Path, distilled: bool = False) -> Path:
    """Write the untrained pipeline of a preset: sampling is the same work, that of a distilled one, too."""
    flags = ["--config", preset, "--data_dir=d", "--output_dir=o"]
    vq, config = cli.parse("train-vqvae", flags), cli.parse("train-ldm", [*flags, "--vqvae_path=v"])
    height, width = height_width(vq.image_size)
    shape = [vq.latent_channels, height >> vq.n_layers, width >> vq.n_layers]
    classes = [f"class {label}" for label in range(10)]
    vqvae = build_vqvae(
        image_channels=3, latent_channels=shape[0], num_codes=vq.vq_num_embed, n_layers=vq.n_layers,
        base_channels=vq.base_channels,
    ).eval()  # fmt: skip
    pipeline = MicroDopplerPipeline(
        vqvae, build_unet(config, shape, len(classes)).eval(),
        build_scheduler(LCM if distilled else "ddim", prediction_type="v_prediction"), classes=classes,
        latent_mean=[0.0] * shape[0], latent_std=[1.0] * shape[0], latent_shape=shape, image_shape=[height, width, 3],
    )  # fmt: skip
    save_pipeline(pipeline, folder, made_from=dict.fromkeys(("images", "vqvae", "latents"), ""), config={})
    return folder


def load(folder: Path, plan: Plan) -> Any:
    """Return the pipeline of a plan on its device."""
    pipeline = MicroDopplerPipeline.from_pretrained(folder)
    pipeline.scheduler = scheduler_like(pipeline.scheduler, plan.scheduler_type)
    pipeline.set_progress_bar_config(disable=True)
    if plan.mixed_precision != "no":
        pipeline.unet.to(DTYPES[plan.mixed_precision])
    return pipeline.to(plan.device)


def plain(pipeline: Any, plan: Plan, folder: Path) -> None:
    """Sample as the diffusers examples do."""
    classes = list(plan.counts)
    for start in range(0, plan.total, PLAIN_BATCH):
        count = min(PLAIN_BATCH, plan.total - start)
        labels = [classes[(start + i) % len(classes)] for i in range(count)]
        with autocast(plan.mixed_precision, plan.device):
            images = pipeline(
                labels, guidance_scale=plan.guidance_scale, num_inference_steps=plan.num_inference_steps
            ).images
        for i, image in enumerate(images):
            image.save(folder / f"{start + i:06d}.png")


def serve(connection: Connection, source: Path, worker: int, workers: int) -> None:
    """Be a worker: make its shards of each plan that comes, until None does."""
    loaded: dict[str, Any] = {}
    while (message := connection.recv()) is not None:
        plan, folder = message
        name = f"{plan.scheduler_type} {plan.mixed_precision}"
        if name not in loaded:
            loaded = {name: load(source, plan)}
        connection.send(make_shards(plan, loaded[name], claim_folder(folder, plan), worker, workers))


class Workers:
    """Processes that wait for plans; a context manager."""

    def __init__(self, source: Path, count: int):
        context = multiprocessing.get_context("spawn")
        self.ends, self.processes = [], []
        for worker in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, source, worker, count), daemon=True)
            process.start()
            self.ends.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.send(None)
        for process in self.processes:
            process.join()

    def run(self, plan: Plan, folder: Path) -> list[Done]:
        """Have a plan made by all workers; return what each of them did."""
        for end in self.ends:
            end.send((plan, folder))
        return [end.recv() for end in self.ends]


def timed(function: Callable[[Path], Any]) -> tuple[float, Any]:
    """Return the seconds that a function takes with an empty folder, and what it returns."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = function(Path(folder))
        return time.perf_counter() - start, result


@torch.no_grad()
def flops_per_image(pipeline: Any, plan: Plan) -> float:
    """Return the floating-point operations of an image: calls of the network, twice with guidance, and decoding."""
    latents = torch.randn(1, *pipeline.config.latent_shape, device=plan.device)
    pipeline.scheduler.set_timesteps(plan.num_inference_steps)
    calls = len(pipeline.scheduler.timesteps) * (1 if plan.guidance_scale == 1 else 2)
    counts = []
    for part in (
        lambda: pipeline.unet(
            latents.to(pipeline.unet.dtype), 0, class_labels=torch.zeros(1, dtype=torch.long, device=plan.device)
        ),
        lambda: pipeline.decode(latents),
    ):
        with FlopCounterMode(display=False) as counter:
            part()
        counts.append(counter.get_total_flops())
    return calls * counts[0] + counts[1]


def measure(source: Path, workers: Workers, plan: Plan, turns: int) -> dict:
    """Return the row of one setting."""
    pipeline = load(source, plan)

    def ours(plan: Plan) -> tuple[float, list[Done]]:
        return timed(lambda folder: workers.run(plan, folder))

    def theirs(plan: Plan) -> float:
        return timed(lambda folder: plain(pipeline, plan, folder))[0]

    warm = dataclasses.replace(plan, num_inference_steps=4)
    ours(warm)
    theirs(warm)
    rates, plain_rates, idle = [], [], []
    for _ in range(turns):
        seconds, done = ours(plan)
        rates.append(plan.total / seconds)
        idle.append(statistics.mean(part.idle for part in done))
        plain_rates.append(plan.total / theirs(plan))
    ratios = [a / b for a, b in zip(rates, plain_rates, strict=True)]
    row = {name: getattr(plan, name) for name in SETTINGS}
    row |= {"img_per_s": statistics.median(rates), "idle": statistics.median(idle)}
    row |= {"plain_img_per_s": statistics.median(plain_rates), "ratio": statistics.median(ratios)}
    row |= {"ratio_range": [min(ratios), max(ratios)], "gflop_per_image": flops_per_image(pipeline, plan) / 1e9}
    if plan.device == "cuda":
        name = torch.cuda.get_device_name()
        if peak := next((gpu.flops for key, gpu in GPUS.items() if key in name), None):
            row["img_per_s_at_peak"] = peak / row["gflop_per_image"] / 1e9
            row["mfu"] = row["img_per_s"] / row["img_per_s_at_peak"]
    return row


def show(row: dict) -> str:
    """Return a row of the table."""
    low, high = row["ratio_range"]
    text = (
        f"{row['scheduler_type']:12s}{row['num_inference_steps']:5d}{row['mixed_precision']:>6s}{row['batch_size']:6d}"
    )
    text += f"{row['img_per_s']:8.2f}{100 * row['idle']:7.1f}{row['plain_img_per_s']:8.2f}"
    text += f"{row['ratio']:7.2f}  ({low:.2f}-{high:.2f})"
    if "mfu" in row:
        text += f"  MFU {100 * row['mfu']:.1f} %, at 100 %: {row['img_per_s_at_peak']:.0f} img/s"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--pipeline", type=Path, help="pipeline folder or run of train-ldm")
    model.add_argument("--config", help="a preset instead, untrained")
    parser.add_argument("--images", type=int, default=128, help="images of a turn, divided among the workers")
    parser.add_argument("--steps", default="20", help="one or several, 10,20")
    parser.add_argument("--batch_size", default="32", help="of ours; one or several")
    parser.add_argument("--scheduler_type", default="ddim", help="one or several")
    parser.add_argument("--mixed_precision", default="no", help="no, bf16, fp16; one or several")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile (a GPU)")
    parser.add_argument("--workers", type=int, help="of ours (default: one per core, one on a GPU)")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = options.pipeline or untrained(options.config, Path(scratch) / "pipeline", options.scheduler_type == LCM)
        compare(options, made)


def compare(options: argparse.Namespace, folder: Path) -> None:
    source, made = find_pipeline(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0))
    count = options.workers or (1 if device == "cuda" else cores)
    torch.set_num_threads(cores)
    about = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {cores} cores"
    print(f"{options.images} images a turn, {options.turns} turns; {name}")
    print(
        f"ours: workers {count} with threads {max(1, cores // count)}; plain: one process, "
        f"batch {PLAIN_BATCH}, threads {cores}"
    )
    print(
        f"{'sampler':12s}{'steps':>5s}{'prec.':>6s}{'batch':>6s}{'img/s':>8s}{'idle %':>7s}{'plain':>8s}{'ratio':>7s}"
    )
    lists = (options.scheduler_type, options.steps, options.mixed_precision, options.batch_size)
    rows = []
    with Workers(source, count) as workers:
        for scheduler_type, steps, precision, batch_size in itertools.product(*(text.split(",") for text in lists)):
            plan = Plan(
                counts=even(options.images, about["classes"], about["classes"]),
                seed=0,
                pipeline=made["hash"],
                images="",
                image_shape=about["image_shape"],
                colormap=(about.get("colormap") or {}).get("name"),
                scheduler_type=scheduler_type,
                num_inference_steps=int(steps),
                guidance_scale=options.guidance_scale,
                mixed_precision=precision,
                batch_size=int(batch_size),
                samples_per_shard=-(-options.images // count),
                device=device,
                cpu_threads=max(1, cores // count),
                compile=options.compile,
            )
            rows.append(measure(source, workers, plan, options.turns))
            print(show(rows[-1]), flush=True)
    print(f"{rows[-1]['gflop_per_image']:.1f} GFLOP an image in the last row")
    record = {"benchmark": "generate", "device": name, "workers": count, "images": options.images, "rows": rows}
    print(json.dumps({**record, "torch": torch.__version__, "version": code_version()}))


if __name__ == "__main__":
    main()
