"""Does it learn? `mdaug train-ldm` on four classes whose distribution is known, against that distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from tests.toy import CLASSES
from tests.toy_latents import SHAPE, draw, toy_latents

SAMPLES = 128  # of each class
LARGEST = 1.0  # mean FD over the classes; as many true draws have 0.08, those of the next class 18.5
OBJECTIVES = {
    "v_prediction": ["--scheduler_type", "dpmsolver++"],
    "flow_matching": ["--timestep_sampling", "logit_normal"],
}


def command(argv: list[str]) -> int:
    from mdaug import cli

    return cli.main(argv)


def features(latents: np.ndarray) -> np.ndarray:
    """Return (n, 12): fixed random projections of latents (n, 2, 4, 4), of which the FD stays a closed form."""
    directions = np.random.default_rng(7).standard_normal((int(np.prod(SHAPE)), 12))
    return latents.reshape(len(latents), -1) @ (directions / np.linalg.norm(directions, axis=0))


def distances(run: Path) -> tuple[list[float], list[float], list[float]]:
    """Return per class the FD to 20,000 true draws: of the model, of as many other true draws, of the next class."""
    from mdaug.measures.fidelity import frechet_distance
    from mdaug.pipeline.pipeline import MicroDopplerPipeline

    pipeline = MicroDopplerPipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    mean, std = (np.array(pipeline.config[name])[:, None, None] for name in ("latent_mean", "latent_std"))
    found, floor, apart = [], [], []
    for label, name in enumerate(CLASSES):
        options = {"num_inference_steps": 20, "output_type": "latent", "num_images_per_prompt": SAMPLES}
        made = pipeline(name, generator=torch.Generator().manual_seed(label), **options).images.numpy() * std + mean
        rng = np.random.default_rng(100 + label)
        truth = features(draw(np.full(20_000, label), rng))
        found.append(frechet_distance(features(made), truth))
        floor.append(frechet_distance(features(draw(np.full(SAMPLES, label), rng)), truth))
        apart.append(frechet_distance(features(draw(np.full(20_000, (label + 1) % 4), rng)), truth))
    return found, floor, apart


@pytest.mark.parametrize("prediction_type", OBJECTIVES)
def test_a_tiny_model_learns_the_distribution_of_each_class(tmp_path, prediction_type):
    folders = toy_latents(tmp_path)
    argv = (
        f"train-ldm --data_dir {folders['packed']} --vqvae_path {folders['vqvae']} --latents_dir {folders['latents']} "
        f"--output_dir {tmp_path / 'run'} --image_size 16 --latent_channels 2 --prediction_type {prediction_type} "
        "--block_out_channels [32,64] --num_heads 2 --norm_num_groups 8 --layers_per_block 1 --window_size 4 "
        "--batch_size 64 --train_samples 38400 --lr 3e-3 --warmup_steps 40 --ema_half_life 2000 "
        "--val_samples 38400 --save_samples 100000 --logging_steps 200 --num_workers 0"
    ).split()
    assert run_ranks(1, command, argv + OBJECTIVES[prediction_type]) == [0]
    found, floor, apart = run_ranks(1, distances, tmp_path / "run")[0]
    assert np.mean(apart) > 10  # what the model of another class would score
    assert np.mean(found) < LARGEST, f"FD {found}, of as many true draws {floor}"
