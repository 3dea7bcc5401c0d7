"""Sifting: unlike the real ones is rejected and replaced, and what is made still depends on the plan alone."""

import dataclasses
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from mdaug.generation.generate import run as generate
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import Plan
from mdaug.generation.shard import make_shard
from mdaug.measures import sifter as sift
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from tests import toy
from tests.tiny_pipeline import CLASSES, save_tiny

SETTINGS = {"images": "", "quantile": 0.05, "steps": 60, "max_candidates": 4}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return toy.toy_packed(tmp_path_factory.mktemp("toy"), size=16, train=120, val=120)


@pytest.fixture(scope="module")
def sifter(packed, tmp_path_factory) -> sift.Sifter:
    return sift.prepare(tmp_path_factory.mktemp("plan"), SETTINGS, packed)


def fresh(count: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    return np.stack([toy.toy_image(label, rng, 16) for label in labels.tolist()]), labels


def rejected(sifter: sift.Sifter, images: np.ndarray, labels: np.ndarray) -> Counter:
    return Counter(reason for reason, _, _ in sifter.judge(images, labels))


def test_real_images_pass_and_others_do_not(sifter):
    images, labels = fresh(120)
    reasons = rejected(sifter, images, labels)
    assert reasons[""] > 0.7 * 120  # four measures of 5 % each
    assert rejected(sifter, images, (labels + 1) % 4)[""] < 0.1 * 120  # as if the label were another
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
    assert rejected(sifter, noise, np.arange(40) % 4)[""] == 0
    assert rejected(sifter, np.zeros((40, 16, 16, 1), np.uint8), np.arange(40) % 4)[""] == 0


def test_each_measure_can_reject_alone(sifter):
    images, labels = fresh(80)
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    for row, name in enumerate(sift.MEASURES):
        limits = np.full_like(sifter.limits, 1e9)
        limits[row] = sifter.limits[row]
        alone = dataclasses.replace(sifter, limits=limits)
        assert rejected(alone, images, labels)[name] < 0.25 * 80, name
        wrong = (images, (labels + 1) % 4) if name in ("confidence", "margin") else (noise, labels)
        assert rejected(alone, *wrong)[name] > 0.5 * 80, name


def test_limits_are_the_quantile_of_real_validation_images(packed, sifter):
    dataset = ShardDataset(packed / "val")
    images = np.stack([dataset[i]["image"] for i in range(len(dataset))])
    for row in range(len(sift.MEASURES)):
        limits = np.full_like(sifter.limits, 1e9)
        limits[row] = sifter.limits[row]
        reasons = rejected(dataclasses.replace(sifter, limits=limits), images, dataset.labels)
        assert 120 - reasons[""] <= 0.05 * 120 + 4  # at most one more in each class, for rounding


def test_confidence_is_calibrated(sifter, packed):
    """No other temperature within the bounds makes the real validation images likelier."""
    from mdaug.measures import classifier, image_set

    val = image_set.load(packed / "val", image_size=16, max_per_class=100)
    predicted, features = classifier.outputs(sifter.model, val.images)
    likelihoods = [
        np.log(sift._confidence(sifter.model, features, val.labels, t)[0] + 1e-12).mean()
        for t in np.clip(sifter.temperature * np.array([0.5, 1, 2]), *sift.TEMPERATURES)
    ]
    assert likelihoods[1] >= max(likelihoods) - 1e-3
    assert (predicted == val.labels).mean() > 0.9


def test_the_envelope_figures_mean_what_they_say():
    image = np.zeros((64, 40), dtype=np.uint8)
    image[16:24, :20] = 255
    image[40:48, 20:] = 255
    low, high, width, centre, spread, level = sift.envelope_figures(image)
    assert low == pytest.approx(16 / 64, abs=0.02)
    assert high == pytest.approx(48 / 64, abs=0.02)
    assert width == pytest.approx(8 / 64, abs=0.02)
    assert centre == pytest.approx(32 / 64, abs=0.01)
    assert spread == pytest.approx(12 / 64, abs=0.01)
    assert level == pytest.approx(8 / 64)


def test_a_sifter_is_trained_once_and_shared(packed, tmp_path, capsys):
    settings = SETTINGS | {"steps": 2}
    first = sift.prepare(tmp_path, settings, packed)
    assert "training a classifier" in capsys.readouterr().out
    again = sift.prepare(tmp_path, settings, None)
    assert capsys.readouterr().out == ""
    assert again.hash == first.hash
    images, labels = fresh(12)
    assert first.judge(images, labels) == again.judge(images, labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sifter"]
    with pytest.raises(UserError, match="name the packed set with --sift"):
        sift.prepare(tmp_path / "other", settings, None)


def test_a_sifter_does_not_depend_on_the_threads_there_are(packed, tmp_path):
    hashes = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        (tmp_path / str(threads)).mkdir()
        hashes.add(sift.prepare(tmp_path / str(threads), SETTINGS | {"steps": 20}, packed).hash)
        assert torch.get_num_threads() == threads
    assert len(hashes) == 1


def plan_of(total: int, **options) -> Plan:
    settings = {"seed": 0, "pipeline": "", "images": "", "image_shape": [16, 16, 1], "scheduler_type": "ddim"}
    settings |= {"num_inference_steps": 5, "guidance_scale": 1.0, "mixed_precision": "no", "device": "cpu"}
    settings |= {"batch_size": 8, "samples_per_shard": 20, "cpu_threads": 1, "sift": SETTINGS}
    counts = dict.fromkeys(toy.CLASSES, 0) | {"flat": total // 2, "wavy": total - total // 2}
    return Plan(counts=counts, **(settings | options))


def painter(plan: Plan, good_share: float, nan_at: int | None = None):
    """In the place of the pipeline: an image of the class, or noise, as the seed decides."""

    def sample(samples: np.ndarray, candidate: int) -> torch.Tensor:
        images = []
        for label, seed in zip(plan.labels(samples).tolist(), plan.seeds(samples, candidate).tolist(), strict=True):
            rng = np.random.default_rng(seed)
            good = rng.random() < good_share
            image = toy.toy_image(label, rng, 16) if good else rng.integers(0, 256, (16, 16, 1))
            images.append(torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1))
        if candidate == 0 and nan_at is not None and nan_at in samples:
            images[samples.tolist().index(nan_at)][0, 0, 0] = float("nan")
        return torch.stack(images)

    return sample


def run(plan: Plan, shard: int, sifter, sample) -> tuple[list, dict]:
    with ThreadPoolExecutor(2) as threads:
        members, statistics = make_shard(plan, shard, sample, sifter, threads, lambda count: None)
        return list(members), statistics()


def test_rejected_samples_are_replaced_until_the_quota_is_full(sifter):
    plan = plan_of(40)
    samples, statistics = run(plan, 0, sifter, painter(plan, 0.5))
    assert [key for key, _ in samples] == plan.keys_and_labels(0)[0]
    assert [int(members["cls"]) for _, members in samples] == plan.keys_and_labels(0)[1]
    metas = [json.loads(members["json"]) for _, members in samples]
    seeds = [int(plan.seeds(np.array([i]), meta["candidate"])[0]) for i, meta in zip(range(20), metas, strict=True)]
    assert [meta["seed"] for meta in metas] == seeds
    assert {meta["candidate"] for meta in metas} >= {0, 1}
    made, kept_out = sum(statistics["made"].values()), sum(sum(r.values()) for r in statistics["rejected"].values())
    assert made - kept_out + sum(statistics["beyond_limits"].values()) == 20
    assert sum(not meta["within_limits"] for meta in metas) == sum(statistics["beyond_limits"].values())
    assert made > 25
    # the same again, and whatever the other shards are
    assert run(plan, 0, sifter, painter(plan, 0.5)) == (samples, statistics)


def test_at_the_cap_the_best_candidate_is_kept_and_marked(sifter):
    plan = plan_of(20)
    samples, statistics = run(plan, 0, sifter, painter(plan, 0.0))
    assert len(samples) == 20
    metas = [json.loads(members["json"]) for _, members in samples]
    assert not any(meta["within_limits"] for meta in metas)
    assert statistics["made"] == {"flat": 40, "wavy": 40}
    assert statistics["beyond_limits"] == {"flat": 10, "wavy": 10}
    assert statistics["sifter"] == sifter.hash


def test_what_is_not_a_number_is_replaced_too(sifter):
    plan = plan_of(20)
    samples, statistics = run(plan, 0, sifter, painter(plan, 1.0, nan_at=3))
    assert json.loads(samples[3][1]["json"])["candidate"] >= 1
    assert sum(reasons.get("not a number", 0) for reasons in statistics["rejected"].values()) == 1


def test_candidates_have_seeds_of_their_own():
    plan = plan_of(1000)
    seeds = np.concatenate([plan.seeds(np.arange(1000), candidate) for candidate in range(4)])
    assert len(np.unique(seeds)) == 4000


@pytest.fixture(scope="module")
def ldm_and_packed(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny pipeline, and "real" images that it made itself."""
    folder = tmp_path_factory.mktemp("end")
    ldm = save_tiny(folder / "ldm")
    for split, number, seed in (("train", 90, 1), ("val", 45, 2)):
        options = {"num_samples": number, "seed": seed, "num_inference_steps": 2, "scheduler_type": "dpmsolver++"}
        generate(GenerateConfig(ldm_path=ldm, output_dir=folder / "packed" / split, **options))
    provenance.write(folder / "packed", kind="images", content_hash="1" * 64, made_from={}, config={})
    return ldm, folder / "packed"


def test_a_sifted_set_is_whole_the_same_for_any_workers_and_reports_rates(ldm_and_packed, tmp_path, capsys):
    ldm, packed = ldm_and_packed
    options = {"num_samples": 30, "num_inference_steps": 2, "scheduler_type": "dpmsolver++", "batch_size": 4}
    options |= {"samples_per_shard": 10, "sift": packed, "sift_steps": 40, "sift_quantile": 0.2, "max_candidates": 3}
    config = GenerateConfig(ldm_path=ldm, output_dir=tmp_path / "one", **options)
    generate(config)
    output = capsys.readouterr().out
    assert "sift: the classifier finds" in output
    report = json.loads((tmp_path / "one" / "sift.json").read_text())
    rates = {name: figures["rate"] for name, figures in report["classes"].items()}
    assert set(rates) == set(CLASSES)
    assert sum(rates.values()) > 0
    for name, figures in report["classes"].items():
        assert f"sift: {name}: {figures['rejected']} of {figures['made']} rejected" in output
        assert figures["made"] - figures["rejected"] + figures["beyond_limits"] == 10
    rows = parquet.read_table(tmp_path / "one" / "manifest.parquet").to_pylist()
    assert Counter(row["class"] for row in rows) == dict.fromkeys(CLASSES, 10)
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert sum(row["candidate"] > 0 for row in rows) > 0

    two = tmp_path / "two"
    generate(dataclasses.replace(config, output_dir=two, step="plan"))
    assert (two / "sifter" / "sifter.json").is_file()
    for number in (1, 0):  # without the packed set: the sifter is in the folder
        generate(GenerateConfig(ldm_path=ldm, output_dir=two, step="work", worker=number, num_workers=2))
    generate(GenerateConfig(ldm_path=ldm, output_dir=two, step="finalize"))
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file() and path.name != provenance.FILE_NAME:
            assert path.read_bytes() == (two / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_another_packed_set_than_that_of_the_training_is_refused(ldm_and_packed, packed, tmp_path):
    ldm, _ = ldm_and_packed
    with pytest.raises(UserError, match="images differ"):
        generate(GenerateConfig(ldm_path=ldm, output_dir=tmp_path / "out", sift=packed))
    assert not (tmp_path / "out").exists()
