"""A perfect generator: fresh draws of the very simulator that made the real images, of other persons and machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdaug.evaluation import comparisons, jobs, usefulness
from mdaug.evaluation.report.verdict import outcome
from mdaug.evaluation.usefulness import BOTH, REAL, SYNTHETIC, TRANSFORMS
from mdaug.measures import image_set
from mdaug.radar.options import SimulateConfig
from mdaug.radar.simulate import run as simulate
from shards.options import PackConfig
from shards.pack import run as pack

pytestmark = pytest.mark.slow

SIZE = 32
CLASSES = ["arm_swing", "bird", "drone", "walking"]


def simulated(folder: Path, seed: int) -> Path:
    """Pack 50 pictures of each class, of ten persons or machines; four of those are held out."""
    options = {"images_per_class": 50, "images_per_group": 5, "image_mode": "gray", "workers": 1}
    simulate(SimulateConfig(folder / "images", classes=CLASSES, image_size=SIZE, seed=seed, **options))
    pack(PackConfig(folder / "images", folder / "packed", val_fraction=0.4, workers=1))
    return folder / "packed"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> dict:
    real, fresh = (simulated(tmp_path_factory.mktemp(f"seed{seed}"), seed) for seed in (0, 1))
    train, held_out, fake = (
        image_set.load(folder, image_size=SIZE, max_per_class=100)
        for folder in (real / "train", real / "val", fresh / "train")
    )
    arms = (REAL, TRANSFORMS, BOTH, SYNTHETIC)
    plan = [job for job in usefulness.plan_jobs([5], [5], 4, train, fake) if job.arm in arms]
    settings = {"steps": 80, "batch_size": 16, "learning_rate": 3e-3, "network": "small"}
    sets = {"train": train, "held_out": held_out, "synthetic": fake}
    results = jobs.run_all(plan, tmp_path_factory.mktemp("results"), 1, **sets, **settings)
    assert results is not None
    return comparisons.summarize(results, held_out, fake)


def test_fresh_simulations_help_five_real_images_per_class_beyond_chance(table):
    gain = next(item for item in table["comparisons"] if (item["arm"], item["baseline"]) == (BOTH, REAL))
    assert gain["n_real"] == 5
    assert outcome(gain) == "gain"
    assert gain["low"] > 0


def test_they_do_alone_what_real_images_do(table):
    accuracy = {arm["arm"]: arm["accuracy"] for arm in table["arms"]}
    assert accuracy[SYNTHETIC] > accuracy[REAL]
    assert table["real_to_synthetic"]["accuracy"] > 2 * table["chance"]
