"""Fréchet distance against sampler and steps: which setting gives the best images for its cost.

Features are those of the classifier that `mdaug evaluate` trains on the real training images. Every setting makes the
same number of images from the same noise, several times from other noise: the spread over these is how far a figure
can be trusted. The floor is the distance of as many held-out real images, or of all there are, several draws of them.
Recall is the share of the training images within reach of generated ones: variety. Precision is the share of generated
images within reach of training images. All classes weigh the same. Distilled pipelines are sampled by their own
scheduler.

    python benchmarks/quality.py --pipeline runs/demo/ldm/best --data runs/demo/packed --cache runs/quality
    python benchmarks/quality.py --pipeline runs/demo/ldm runs/demo/distilled --steps 1,2,4,20 --data ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdaug.artifacts import find_pipeline
from mdaug.measures import classifier, image_set
from mdaug.measures.fidelity import frechet_distance, manifold_shares
from mdaug.measures.image_set import class_weights
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.pipeline.schedulers import LCM, MOST_CALLS, SCHEDULERS, is_distilled, scheduler_like, validate_steps
from shards.provenance import code_version
from shards.subset import take_per_class


def calls(scheduler_type: str, steps: int) -> int:
    """Return how often the network is called for an image, guidance aside."""
    return {"heun": 2 * steps - 1, "pndm": steps + 1}.get(scheduler_type, steps)


def settings(schedulers: list[str], steps: list[int], most_calls: int) -> list[tuple[str, int]]:
    """Return the (sampler, steps) that can run with at most so many calls."""
    found = []
    for scheduler_type in schedulers:
        for number in steps:
            try:
                validate_steps(scheduler_type, number)
            except ValueError:
                continue
            if calls(scheduler_type, number) <= most_calls:
                found.append((scheduler_type, number))
    return found


def sample(pipeline: Any, labels: np.ndarray, steps: int, seed: int, guidance: float, batch_size: int) -> np.ndarray:
    """Return uint8 (n, H, W, C); image i comes from the same noise whatever the sampler."""
    images = []
    for at in range(0, len(labels), batch_size):
        part = labels[at : at + batch_size].tolist()
        generators = [torch.Generator().manual_seed(seed * 1_000_000 + at + i) for i in range(len(part))]
        options = {"guidance_scale": guidance, "num_inference_steps": steps, "output_type": "np"}
        images.append(pipeline(part, generator=generators, **options).images)
    return (255 * np.concatenate(images)).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True, help="the packed set that the pipeline was trained on")
    parser.add_argument("--cache", type=Path, required=True, help="keeps the images made: the same command goes on")
    parser.add_argument("--per_class", type=int, default=48)
    parser.add_argument("--steps", default="4,8,12,20,50")
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS))
    parser.add_argument("--seeds", type=int, default=2, help="how often a setting is repeated from other noise")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--most_calls", type=int, default=60, help="leave out what calls the network more often")
    parser.add_argument("--judge_steps", type=int, default=400, help="optimizer steps of the classifier")
    options = parser.parse_args()

    chosen: list[tuple[Path, Path, str, int]] = []  # pipeline, its cache, sampler, steps
    for given in options.pipeline:
        folder, made = find_pipeline(given)
        pipeline = MicroDopplerPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        trained, classes = pipeline.scheduler, len(pipeline.config.classes)
        labels = np.tile(np.arange(classes), options.per_class)
        schedulers, most = options.schedulers.split(","), options.most_calls
        if is_distilled(type(trained).__name__):
            schedulers, most = [LCM], MOST_CALLS
        cache = options.cache / f"{made['hash'][:12]}-{options.per_class}-g{options.guidance_scale:g}"
        cache.mkdir(parents=True, exist_ok=True)
        for scheduler_type, steps in settings(schedulers, [int(n) for n in options.steps.split(",")], most):
            chosen.append((given, cache, scheduler_type, steps))
            for seed in range(options.seeds):
                path = cache / f"{scheduler_type}-{steps}-{seed}.npy"
                if path.is_file():
                    continue
                pipeline.scheduler = scheduler_like(trained, scheduler_type)
                images = sample(pipeline, labels, steps, seed, options.guidance_scale, options.batch_size)
                np.save(path.with_suffix(".tmp.npy"), images)
                path.with_suffix(".tmp.npy").rename(path)
                print(f"made {path.name}", flush=True)

    train, held_out = (
        image_set.load(options.data / part, image_size=64, max_per_class=2000) for part in ("train", "val")
    )
    judge = classifier.train(
        train.images,
        train.labels,
        classes,
        steps=options.judge_steps,
        batch_size=32,
        learning_rate=1e-3,
        seed=0,
    )
    real, real_weights = classifier.outputs(judge, train.images)[1], class_weights(train.labels)

    def measured(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        weights = class_weights(labels)
        shares = manifold_shares(real, features, real_weights=real_weights, other_weights=weights)
        return {"fd": frechet_distance(real, features, real_weights, weights), **shares}

    predicted, features = classifier.outputs(judge, held_out.images)
    draws = [take_per_class(held_out.labels, options.per_class, seed=seed) for seed in range(options.seeds)]
    known = [measured(features[draw], held_out.labels[draw]) for draw in draws]
    accuracy = float((predicted == held_out.labels).mean())
    print(f"{len(labels)} images a setting and seed, {options.seeds} seeds, guidance {options.guidance_scale:g}")
    floor = {name: float(np.mean([each[name] for each in known])) for name in ("fd", "recall", "precision")}
    print(
        f"held-out images: FD {floor['fd']:.2f}, recall {floor['recall']:.2f}, precision {floor['precision']:.2f}; "
        f"the classifier finds {100 * accuracy:.1f} % of their classes"
    )

    print(
        f"{'pipeline':16s}{'sampler':12s}{'steps':>6s}{'calls':>6s}{'FD':>9s}{'range over seeds':>20s}"
        f"{'class found':>12s}{'recall':>8s}{'precision':>11s}"
    )
    rows = []
    for given, cache, scheduler_type, steps in chosen:
        figures: list[dict[str, float]] = []
        found = []
        for seed in range(options.seeds):
            images = np.load(cache / f"{scheduler_type}-{steps}-{seed}.npy")
            predicted, features = classifier.outputs(judge, np.stack([image_set.preprocess(i, 64) for i in images]))
            figures.append(measured(features, labels))
            found.append(float((predicted == labels).mean()))
        row = {"scheduler": scheduler_type, "steps": steps, "calls": calls(scheduler_type, steps)}
        fd, recall, precision = ([each[name] for each in figures] for name in ("fd", "recall", "precision"))
        row |= {"pipeline": given.name, "fd": [round(each, 3) for each in fd]}
        row |= {"found": [round(each, 3) for each in found], "recall": [round(each, 3) for each in recall]}
        rows.append(row | {"precision": [round(each, 3) for each in precision]})
        spread = f"{min(fd):.2f} to {max(fd):.2f}"
        print(
            f"{given.name:16s}{scheduler_type:12s}{steps:6d}{row['calls']:6d}{np.mean(fd):9.2f}{spread:>20s}"
            f"{np.mean(found):12.3f}{np.mean(recall):8.3f}{np.mean(precision):11.3f}"
        )
    record = {"benchmark": "quality", "floor": [round(each["fd"], 3) for each in known], "images": len(labels)}
    print(json.dumps({**record, "guidance": options.guidance_scale, "rows": rows, "version": code_version()}))


if __name__ == "__main__":
    main()
