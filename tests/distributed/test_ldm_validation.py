"""Validation of the diffusion model by what it samples: one figure, whatever the ranks, and what it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.ranks import run_ranks

COUNT = 9  # an odd number, so that ranks differ in how many they make


def figures(root: Path) -> tuple[dict[str, float], float]:
    """What `validate` says on this rank, and the distance put together by hand, an image at a time."""
    import torch

    from mdaug import distributed
    from mdaug.measures.features import extract, random_network
    from mdaug.measures.fidelity import frechet_distance
    from mdaug.training import sharded_tensors
    from mdaug.training.ldm_task import VALIDATION_SEED
    from shards.dataset import ShardDataset
    from tests.toy_latents import toy_task

    device = distributed.init()
    root = root / str(distributed.rank())  # the same folders for each rank, made by itself
    task = toy_task(root, best_by="fd", fd_samples=COUNT, num_inference_steps=3, batch_size=2)
    assert (task.score, task.watched) == ("fd", tuple(f"loss_t{i}" for i in range(5)))
    # A fresh network predicts 0 whatever the class; every rank takes its piece of the same whole weights.
    weight = torch.randn(task.module.conv_out.weight.shape, generator=torch.Generator().manual_seed(0))
    task.ema.state()["half-life/conv_out.weight"].copy_(sharded_tensors.local_shard(weight))
    found = task.validate(SimpleNamespace(device=device))
    again = task.validate(SimpleNamespace(device=device))
    assert again == found

    with task.ema.network() as averaged:
        pipeline = task.pipeline(averaged)
        pipeline.set_progress_bar_config(disable=True)
        real = ShardDataset(root / "packed" / "val")
        made = []
        for i in range(COUNT):
            noise = torch.Generator().manual_seed(VALIDATION_SEED + i)
            label = int(real.labels[i * len(real) // COUNT])
            made.append(pipeline(label, generator=noise, num_inference_steps=3, output_type="np").images[0])
    network, originals = random_network(1), np.stack([real[i]["image"] for i in range(len(real))])
    features = extract(network, np.rint(255 * np.stack(made)).astype(np.uint8))
    return found, frechet_distance(extract(network, originals), features)


def test_the_distance_of_samples_is_the_same_on_every_rank_and_for_any_number_of_them(tmp_path):
    ((one, by_hand),) = run_ranks(1, figures, tmp_path / "one")
    assert one["fd"] == pytest.approx(by_hand, rel=1e-4)
    first, second = (found for found, _ in run_ranks(2, figures, tmp_path / "two"))
    assert first == second
    assert first == pytest.approx(one, rel=1e-4)
