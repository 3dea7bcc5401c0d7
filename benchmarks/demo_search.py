"""The settings of the demo, each at the same cost: what is the best quality of so many seconds on two cores?

The cost of a training step is measured in seconds of one processor core, all candidates in turns. Each candidate then
trains as many samples as it can in the time that the demo gives its stage: a cheaper network sees more of them. VQ-VAEs
are judged by their reconstructions of held-out images, diffusion models by samples of the demo's sampler, both by
the classifier that `mdaug evaluate` trains on the real training images.

    python benchmarks/demo_search.py --cache runs/demo-search
    python benchmarks/demo_search.py --cache runs/demo-search --only narrow-2e-3    # in pieces; the table at the end
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdaug import cli
from mdaug.artifacts import find_pipeline
from mdaug.images import to_tensor, to_uint8
from mdaug.measures import classifier, image_set
from mdaug.measures.fidelity import frechet_distance
from mdaug.models.vqvae import load_vqvae
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.pipeline.schedulers import scheduler_like
from mdaug.training import losses
from mdaug.training.ldm_task import build_unet
from mdaug.training.vqvae_task import build_module
from shards.provenance import code_version

IMAGES_PER_CLASS, CLASSES = 160, 5
LATENT = [4, 16, 16]
# Samples per second of the first candidate on two quiet cores, measured by the demo; they turn costs into its seconds.
QUIET = {"vqvae": 43.0, "unet": 69.0}
SHAPES = {
    "vqvae": {"wide": "--base_channels 16 --batch_size 8", "narrow": "--base_channels 8 --batch_size 8"},
    "unet": {
        "hybrid": "--layers_per_block 2 --attention hybrid --batch_size 16",
        "plain": "--layers_per_block 1 --attention none,none,full --batch_size 16",
    },
}
CANDIDATES = [  # kind, shape, learning rate
    ("vqvae", "wide", "7e-4"), ("vqvae", "wide", "2e-3"),
    ("vqvae", "narrow", "7e-4"), ("vqvae", "narrow", "2e-3"), ("vqvae", "narrow", "4e-3"),
    ("unet", "hybrid", "7e-4"),
    ("unet", "plain", "7e-4"), ("unet", "plain", "1.5e-3"), ("unet", "plain", "3e-3"),
]  # fmt: skip
STEPS, ROUNDS = 3, 4  # timed steps of a candidate in a round, and rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="keeps all that is made: the same command goes on")
    parser.add_argument("--only", nargs="+", help="candidates that are trained now, shape-rate")
    parser.add_argument("--vqvae", default="narrow-2e-3", help="whose latents the U-Nets learn")
    parser.add_argument("--vqvae_s", type=float, default=70, help="seconds of the VQ-VAE on two quiet cores")
    parser.add_argument("--unet_s", type=float, default=110, help="seconds of the diffusion model")
    parser.add_argument("--per_class", type=int, default=40, help="samples of each class that are judged")
    options = parser.parse_args()
    cache: Path = options.cache
    torch.set_num_threads(1)

    # Data, as the demo makes them.
    if not (cache / "packed" / "provenance.json").is_file():
        sizes = f"--images_per_class {IMAGES_PER_CLASS} --images_per_group {IMAGES_PER_CLASS // 20}"
        run("simulate", f"{sizes} --output_dir {cache / 'images'}")
        run("pack", f"--data_dir {cache / 'images'} --output_dir {cache / 'packed'}")

    # What a sample of each candidate costs.
    path = cache / "costs.json"
    if not path.is_file():
        made = {"vqvae": costs(SHAPES["vqvae"], vqvae_step), "unet": costs(SHAPES["unet"], unet_step)}
        path.write_text(json.dumps(made, indent=1))
    cost: dict[str, dict[str, float]] = json.loads(path.read_text())

    # The trainings: VQ-VAEs, and diffusion models on the latents of one of them.
    seconds = {"vqvae": options.vqvae_s, "unet": options.unet_s}
    labels = np.tile(np.arange(CLASSES), options.per_class)
    data, latents = f"--data_dir {cache / 'packed'}", cache / f"latents-{options.vqvae}"
    vqvae = f"{data} --vqvae_path {cache / f'vqvae-{options.vqvae}'}"
    candidates: list[tuple[str, str, int, Path]] = []  # kind, name, samples, folder
    for kind, shape, rate in CANDIDATES:
        first = next(iter(cost[kind].values()))
        count = int(seconds[kind] * QUIET[kind] * first / cost[kind][shape]) // 16 * 16
        name = f"{shape}-{rate}"
        folder = cache / (f"vqvae-{name}" if kind == "vqvae" else f"unet-{options.vqvae}-{name}")
        candidates.append((kind, name, count, folder))
        if options.only is not None and name not in options.only:
            continue
        flags = f"--output_dir {folder} {lengths(count)} {SHAPES[kind][shape]} --lr {rate}"
        if kind == "vqvae":
            run("train-vqvae", f"{data} {flags}")
        else:
            run("encode", f"{vqvae} --output_dir {latents}")
            run("train-ldm", f"{vqvae} --latents_dir {latents} {flags}")
            sampled(folder, labels)
    if options.only is not None:
        return

    # All that are there, judged by one classifier of the real training images.
    train, held_out = (
        image_set.load(cache / "packed" / part, image_size=64, max_per_class=2000) for part in ("train", "val")
    )
    judge = judge_of(train, cache / "judge.pt")
    real = classifier.outputs(judge, train.images)[1]

    def judged(images: np.ndarray, intended: np.ndarray) -> dict[str, float]:
        predicted, features = classifier.outputs(judge, images)
        found = 100 * float((predicted == intended).mean())
        return {"fd": round(frechet_distance(real, features), 3), "found": round(found, 1)}

    print(f"VQ-VAE {options.vqvae_s:g} s, U-Net {options.unet_s:g} s on the VQ-VAE {options.vqvae}")
    print(f"{'candidate':18s}{'core ms/sample':>15s}{'samples':>9s}{'FD':>8s}{'class found':>13s}{'PSNR':>8s}")
    rows: list[dict[str, Any]] = [{"name": "held-out images", **judged(held_out.images, held_out.labels)}]
    for kind, name, count, folder in candidates:
        if not (folder / "best").is_dir():
            continue
        row = {"name": f"{kind} {name}", "ms": cost[kind][name.partition("-")[0]], "samples": count}
        if kind == "vqvae":
            images = reconstructions(folder, held_out.images)
            error = np.square(images.astype(float) - held_out.images).mean((1, 2, 3))
            psnr = float((10 * np.log10(255**2 / error)).mean())
            rows.append({**row, **judged(images, held_out.labels), "psnr": round(psnr, 2)})
        else:
            rows.append({**row, **judged(sampled(folder, labels), labels)})
    for row in rows:
        known = [str(row.get(name, "")) for name in ("ms", "samples", "psnr")]
        figures = f"{row['fd']:8.2f}{row['found']:11.1f} %"
        print(f"{row['name']:18s}{known[0]:>15s}{known[1]:>9s}{figures}{known[2]:>8s}")
    print(json.dumps({"benchmark": "demo_search", "rows": rows, "version": code_version()}))


def judge_of(train: image_set.ImageSet, path: Path) -> classifier.Classifier:
    """Return the classifier that judges, trained on the real training images or read from a file."""
    if path.is_file():
        judge = classifier.build("small", train.images.shape[-1], CLASSES, 64)
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    judge = classifier.train(train.images, train.labels, CLASSES, steps=400, batch_size=32, learning_rate=1e-3, seed=0)
    torch.save(judge.state_dict(), path)
    return judge


def run(command: str, flags: str) -> None:
    """Run a command with the preset of the demo; a finished one ends at once."""
    subprocess.run([sys.executable, "-m", "mdaug", command, "--config", "demo", *flags.split()], check=True)


def lengths(samples: int) -> str:
    """Return the flags of a training that is validated once, at its end."""
    return f"--train_samples {samples} --val_samples {samples} --save_samples {samples} --save_images false"


def costs(candidates: dict[str, str], make: Callable[[list[str]], tuple[Callable[[], None], int]]) -> dict[str, float]:
    """Return candidate -> milliseconds of one core for a sample, the median of rounds in which all take turns."""
    steps = {name: make(flags.split()) for name, flags in candidates.items()}
    for step, _ in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, (step, batch) in steps.items():
            begun = time.process_time()
            for _ in range(STEPS):
                step()
            taken[name].append(1000 * (time.process_time() - begun) / STEPS / batch)
    return {name: round(statistics.median(times), 2) for name, times in taken.items()}


def vqvae_step(flags: list[str]) -> tuple[Callable[[], None], int]:
    """Return a training step of a VQ-VAE without the engine, and its batch."""
    options = cli.parse("train-vqvae", ["--config", "demo", "--data_dir", ".", "--output_dir", ".", *flags])
    module, _ = build_module(options, 1)
    images = torch.rand(int(options.batch_size), 1, 64, 64)
    module.codebook.start_from(torch.randn(2 * options.vq_num_embed, options.vq_embed_dim), 0)
    optimizer = torch.optim.AdamW(module.parameters())

    def step() -> None:
        reconstruction, _, _, commitment = module(images)
        distance = losses.pixel_distance(reconstruction, images, "l2") + losses.edge_distance(reconstruction, images)
        (distance.mean() + commitment).backward()
        optimizer.step()
        optimizer.zero_grad()
        module.codebook.update(0, 0)

    return step, len(images)


def unet_step(flags: list[str]) -> tuple[Callable[[], None], int]:
    """Return a training step of a U-Net without the engine, and its batch."""
    folders = [word for name in ("data_dir", "output_dir", "vqvae_path") for word in (f"--{name}", ".")]
    options = cli.parse("train-ldm", ["--config", "demo", *folders, *flags])
    unet = build_unet(options, LATENT, CLASSES)
    batch = int(options.batch_size)
    latents, times = torch.randn(batch, *LATENT), torch.randint(0, 1000, (batch,))
    labels = torch.randint(0, CLASSES, (batch,))
    optimizer = torch.optim.AdamW(unet.parameters())

    def step() -> None:
        unet(latents, times, class_labels=labels).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, batch


@torch.no_grad()
def reconstructions(folder: Path, images: np.ndarray) -> np.ndarray:
    """Return uint8 (n, H, W, C), images as classifiers see them, through a VQ-VAE."""
    model = load_vqvae(folder)
    parts = [to_uint8(model(part).sample) for part in to_tensor(images).split(32)]
    return np.stack([image_set.preprocess(picture, 64) for picture in np.concatenate(parts)])


def sampled(folder: Path, labels: np.ndarray) -> np.ndarray:
    """Return samples of a diffusion model as classifiers see them; they are kept beside it."""
    path = folder / f"samples-{len(labels)}.npy"
    if not path.is_file():
        pipeline: Any = MicroDopplerPipeline.from_pretrained(find_pipeline(folder)[0])
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler_like(pipeline.scheduler, "ddpm")
        made = []
        for part in np.array_split(np.arange(len(labels)), -(-len(labels) // 32)):
            generators = [torch.Generator().manual_seed(int(i)) for i in part]
            given = {"generator": generators, "num_inference_steps": 20, "guidance_scale": 1.0, "output_type": "np"}
            made.append(pipeline(labels[part].tolist(), **given).images)
        np.save(path, np.concatenate(made))
    pictures = (255 * np.load(path)).round().astype(np.uint8)
    return np.stack([image_set.preprocess(picture, 64) for picture in pictures])


if __name__ == "__main__":
    main()
