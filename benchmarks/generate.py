"""Images per second of `mdaug generate` against a plain diffusers loop, with the same weights, steps and precision.

The plain loop is what the diffusers examples do: call the pipeline with a batch of 4, save each
image as a PNG file. Both run in turns in this process; the median of the turns counts.

    python benchmarks/generate.py [--pipeline runs/demo/ldm/pipeline] [--images 64] [--steps 20]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mdaug.sampling.counts import even
from mdaug.sampling.pipeline import MicroDopplerPipeline
from mdaug.sampling.plan import Plan
from mdaug.sampling.schedulers import build_scheduler, scheduler_like, scheduler_type_of
from mdaug.sampling.worker import PRECISIONS, work
from shards.provenance import code_version

PLAIN_BATCH = 4


def demo_pipeline() -> MicroDopplerPipeline:
    """Random weights in about the demo's sizes: 64 x 64 RGB images, 16 x 16 x 4 latents."""
    from diffusers import VQModel

    from mdaug.models.hybrid_unet import HybridUNet2DModel

    vqvae = VQModel(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        num_vq_embeddings=128,
        vq_embed_dim=4,
    )
    unet = HybridUNet2DModel(
        block_out_channels=(32, 64, 96), layers_per_block=1, num_heads=4, norm_num_groups=16, num_classes=5
    )
    classes = ["walk", "drone", "bird", "arm", "fall"]
    statistics_ = {"latent_mean": [0.0] * 4, "latent_std": [1.0] * 4}
    shapes = {"latent_shape": [4, 16, 16], "image_shape": [64, 64, 3]}
    return MicroDopplerPipeline(vqvae.eval(), unet.eval(), build_scheduler(), classes=classes, **statistics_, **shapes)


def plain(pipeline: MicroDopplerPipeline, plan: Plan, folder: Path) -> None:
    """Sample as the diffusers examples do."""
    precision = PRECISIONS[plan.mixed_precision]
    classes = list(plan.counts)
    for start in range(0, plan.total, PLAIN_BATCH):
        count = min(PLAIN_BATCH, plan.total - start)
        labels = [classes[(start + i) % len(classes)] for i in range(count)]
        with torch.autocast(plan.device, precision, enabled=precision is not torch.float32):
            images = pipeline(
                labels, guidance_scale=plan.guidance_scale, num_inference_steps=plan.num_inference_steps
            ).images
        for i, image in enumerate(images):
            image.save(folder / f"{start + i:06d}.png")


def seconds(function, *arguments) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        function(*arguments, Path(folder))
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, help="pipeline folder (default: random weights in the demo's sizes)")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--scheduler_type", default="ddim")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--mixed_precision", choices=list(PRECISIONS), default="no")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = MicroDopplerPipeline.from_pretrained(options.pipeline) if options.pipeline else demo_pipeline()
    pipeline.scheduler = scheduler_like(pipeline.scheduler, options.scheduler_type)
    pipeline.to(device).unet.to(PRECISIONS[options.mixed_precision])
    pipeline.set_progress_bar_config(disable=True)
    plan = Plan(
        counts=even(options.images, pipeline.config.classes, pipeline.config.classes),
        seed=0,
        pipeline="",
        images="",
        image_shape=list(pipeline.config.image_shape),
        scheduler_type=scheduler_type_of(pipeline.scheduler),
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        mixed_precision=options.mixed_precision,
        batch_size=options.batch_size,
        samples_per_shard=max(options.images // 2, 1),
        device=device,
        cpu_threads=torch.get_num_threads(),
    )

    def ours(folder: Path) -> None:
        work(plan, pipeline, folder)

    def theirs(folder: Path) -> None:
        plain(pipeline, plan, folder)

    seconds(ours)  # warm
    seconds(theirs)
    turns = [(seconds(ours), seconds(theirs)) for _ in range(options.turns)]
    rates = [options.images / statistics.median(column) for column in zip(*turns, strict=True)]
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {plan.cpu_threads} threads"
    print(f"{options.images} images, {plan.scheduler_type}, {options.steps} steps, {options.mixed_precision}; {name}")
    print(f"{'':32s}{'img/s':>8s}")
    print(f"{f'mdaug generate, batch {options.batch_size}':32s}{rates[0]:8.2f}")
    print(f"{f'plain diffusers loop, batch {PLAIN_BATCH}':32s}{rates[1]:8.2f}")
    print(f"{'ratio':32s}{rates[0] / rates[1]:8.2f}")
    record = {"benchmark": "generate", "img_per_s": rates[0], "plain_img_per_s": rates[1], "ratio": rates[0] / rates[1]}
    settings = {"device": name, "steps": options.steps, "batch": options.batch_size, "scheduler": plan.scheduler_type}
    precision = {"precision": options.mixed_precision, "images": options.images, "version": code_version()}
    print(json.dumps({**record, **settings, **precision}))


if __name__ == "__main__":
    main()
