"""One worker of a plan: it makes the shards that fall to it and are not there yet."""

from __future__ import annotations

import io
import itertools
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mdaug.sampling.plan import Plan
from shards.progress import Progress
from shards.writer import finished, write_shard

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENCODERS = 2


def shards_of(plan: Plan, worker: int, workers: int) -> list[int]:
    """Return the shards of one of several workers: every `workers`-th."""
    return list(range(worker, plan.num_shards, workers))


def missing_shards(plan: Plan, folder: Path) -> list[int]:
    """Return the shards that are not finished."""
    return [shard for shard in range(plan.num_shards) if finished(folder / plan.shard_name(shard)) is None]


def work(plan: Plan, pipeline: Any, folder: Path, worker: int = 0, workers: int = 1) -> int:
    """Make the missing shards of a worker and return how many samples that were.

    PNG encoding and writing run in threads while the device denoises the next batch; at most two
    shards are held in memory.

    Args:
        plan: what to make.
        pipeline: the `MicroDopplerPipeline` of the plan, on its device.
        folder: where the shards go.
        worker: number of this worker in [0, workers).
        workers: number of workers.

    Raises:
        UserError: no space left; what is finished stays, and the same command goes on from there.
    """
    if plan.device == "cpu":
        torch.set_num_threads(plan.cpu_threads)
    if plan.mixed_precision != "no":
        pipeline.unet.to(PRECISIONS[plan.mixed_precision])
    pipeline.set_progress_bar_config(disable=True)
    todo = [s for s in shards_of(plan, worker, workers) if finished(folder / plan.shard_name(s)) is None]
    total = sum(len(batch) for shard in todo for batch in plan.batches(shard))
    written: Future | None = None
    with (
        ThreadPoolExecutor(ENCODERS) as encoders,
        ThreadPoolExecutor(1) as writer,
        Progress("generate", total, "image") as progress,
    ):
        for shard in todo:
            encoded = []
            for batch in plan.batches(shard):
                images = sample_images(plan, pipeline, batch)
                encoded.append(encoders.submit(encode, plan, batch, images, pipeline.config.colormap))
                progress.update(len(batch))
            if written:
                written.result()
            samples = itertools.chain.from_iterable(map(Future.result, encoded))
            written = writer.submit(write_shard, folder / plan.shard_name(shard), samples)
        if written:
            written.result()
    return total


def sample_images(plan: Plan, pipeline: Any, batch: np.ndarray) -> torch.Tensor:
    """Return the images of sample indices, uint8 (B, H, W, C) on the device of the pipeline."""
    generators = [torch.Generator().manual_seed(seed) for seed in plan.seeds(batch).tolist()]
    precision = PRECISIONS[plan.mixed_precision]
    # float32 weights of the VQ-VAE keep its code vectors exact; autocast runs its convolutions in low precision.
    with torch.autocast(plan.device, precision, enabled=precision is not torch.float32):
        images = pipeline(
            plan.labels(batch).tolist(),
            generator=generators,
            guidance_scale=plan.guidance_scale,
            num_inference_steps=plan.num_inference_steps,
            output_type="pt",
        ).images
    return images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)


def encode(
    plan: Plan, batch: np.ndarray, images: torch.Tensor, colormap: dict[str, str] | None = None
) -> list[tuple[str, dict[str, bytes]]]:
    """Return the members of the samples of a batch: PNG (levels with their colour map), label and description."""
    classes = list(plan.counts)
    pixels = images.cpu().numpy()
    rows = zip(batch.tolist(), plan.labels(batch).tolist(), plan.seeds(batch).tolist(), pixels, strict=True)
    return [(plan.key(i), _members(classes[label], label, seed, image, colormap)) for i, label, seed, image in rows]


def _members(name: str, label: int, seed: int, image: np.ndarray, colormap: dict[str, str] | None) -> dict[str, bytes]:
    file = io.BytesIO()
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    if colormap:
        picture.putpalette(bytes.fromhex(colormap["palette"]))
    picture.save(file, format="PNG")
    meta = {"class": name, "seed": seed, "source": "synthetic"}
    return {"png": file.getvalue(), "cls": str(label).encode(), "json": json.dumps(meta, ensure_ascii=False).encode()}
