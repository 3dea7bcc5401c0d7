"""Fréchet distance against sampler and steps: which setting gives the best images for its cost.

Features are those of the classifier that `mdaug evaluate` trains on the real training images. Every setting makes the
same number of images from the same noise. The floor is the distance of as many held-out real images.

    python benchmarks/quality.py --pipeline runs/demo/ldm/best --data runs/demo/packed
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from mdaug.evaluation import classifier, data
from mdaug.evaluation.fidelity import frechet_distance
from mdaug.sampling.pipeline import MicroDopplerPipeline
from mdaug.sampling.schedulers import SCHEDULERS, scheduler_like, validate_steps
from shards.provenance import code_version


def calls(scheduler_type: str, steps: int) -> int:
    """Return how often the network is called, an image and guidance aside."""
    return {"heun": 2 * steps - 1, "pndm": steps + 1}.get(scheduler_type, steps)


def allowed(scheduler_type: str, steps: int) -> bool:
    try:
        validate_steps(scheduler_type, steps)
    except ValueError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the packed set that the pipeline was trained on")
    parser.add_argument("--per_class", type=int, default=48)
    parser.add_argument("--steps", default="4,8,12,20,50")
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS))
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--most_calls", type=int, default=60, help="leave out what calls the network more often")
    options = parser.parse_args()

    pipeline = MicroDopplerPipeline.from_pretrained(options.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    trained = pipeline.scheduler
    train, held_out = (data.load(options.data / part, image_size=64, max_per_class=2000) for part in ("train", "val"))
    count = len(train.dataset.classes)
    settings = {"steps": 400, "batch_size": 32, "learning_rate": 1e-3, "seed": 0, "transforms": False}
    judge = classifier.train(train.images, train.labels, count, **settings)
    real = classifier.outputs(judge, train.images)[1]
    chosen = data.take_per_class(held_out.labels, options.per_class, seed=0)
    predicted, features = classifier.outputs(judge, held_out.images[chosen])
    floor = frechet_distance(real, features)
    accuracy = float((predicted == held_out.labels[chosen]).mean())
    print(f"floor: {floor:.2f} with {len(chosen)} held-out images; the classifier finds {100 * accuracy:.0f} % of them")

    labels = np.tile(np.arange(count), options.per_class)
    rows = []
    print(f"{'sampler':12s}{'steps':>6s}{'calls':>6s}{'FD':>9s}{'class found':>12s}{'s/img':>8s}")
    for scheduler_type in options.schedulers.split(","):
        pipeline.scheduler = scheduler_like(trained, scheduler_type)
        for steps in map(int, options.steps.split(",")):
            if not allowed(scheduler_type, steps) or calls(scheduler_type, steps) > options.most_calls:
                continue
            images, start = [], time.perf_counter()
            for at in range(0, len(labels), options.batch_size):
                part = labels[at : at + options.batch_size].tolist()
                generators = [torch.Generator().manual_seed(at + i) for i in range(len(part))]
                images.append(
                    pipeline(
                        part,
                        generator=generators,
                        guidance_scale=options.guidance_scale,
                        num_inference_steps=steps,
                        output_type="np",
                    ).images
                )
            seconds = (time.perf_counter() - start) / len(labels)
            pixels = np.concatenate(images)
            pixels = (255 * pixels).round().astype(np.uint8)
            predicted, features = classifier.outputs(judge, np.stack([data.preprocess(image, 64) for image in pixels]))
            distance = frechet_distance(real, features)
            found = float((predicted == labels).mean())
            row = {"scheduler": scheduler_type, "steps": steps, "calls": calls(scheduler_type, steps)}
            rows.append({**row, "fd": round(distance, 3), "found": round(found, 4), "s_per_img": round(seconds, 4)})
            print(
                f"{scheduler_type:12s}{steps:6d}{row['calls']:6d}{distance:9.2f}{found:12.2f}{seconds:8.3f}", flush=True
            )
    record = {"benchmark": "quality", "floor": floor, "images": len(labels), "guidance": options.guidance_scale}
    print(json.dumps({**record, "rows": rows, "version": code_version()}))


if __name__ == "__main__":
    main()
