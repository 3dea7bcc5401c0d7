"""Augmented latents and continuous conditions in a training run: of one class, which makes the model unconditional."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import atomic, provenance
from shards.dataset import ShardDataset
from shards.index import content_hash, write_index
from shards.writer import write_shard
from tests.devices import DEVICES, choose
from tests.ranks import run_ranks
from tests.trainings import losses, train_ldm, train_vqvae

COPIES = 3


def ridge_packed(folder: Path) -> Path:
    """One class: a horizontal ridge whose row is its `speed` in [2, 14], at any brightness."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("val", 16)):
        samples = []
        for i in range(count):
            speed = rng.uniform(2, 14)
            level = np.exp(-0.5 * ((np.arange(16) - speed) / 1.2) ** 2) * rng.uniform(0.8, 1)
            file = io.BytesIO()
            Image.fromarray(np.repeat((255 * level).astype(np.uint8)[:, None], 16, axis=1)).save(file, "PNG")
            meta = {"class": "ridge", "group": f"{split}{i // 4}", "speed": f"{speed:.3f}"}
            samples.append((f"{split}_{i}", {"png": file.getvalue(), "cls": b"0", "json": json.dumps(meta).encode()}))
        for shard in range(2):
            write_shard(folder / split / f"{shard:06d}.tar", samples[shard::2])
        write_index(folder / split, ["ridge"], image_shape=[16, 16, 1])
    atomic.write_text(folder / "classes.json", json.dumps(["ridge"]))
    provenance.write(folder, kind="images", content_hash=content_hash(folder), made_from={}, config={})
    return folder


def encode(packed: Path, vqvae: Path, output: Path, copies: int) -> None:
    from mdaug.training.encode import run
    from mdaug.training.options_vqvae import EncodeConfig

    run(EncodeConfig(packed, vqvae, output, num_workers=0, batch_size=16, augment_copies=copies))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """packed, vqvae, latents without copies and with."""
    root = tmp_path_factory.mktemp("ridge")
    ridge_packed(root / "packed")
    run_ranks(1, train_vqvae, root / "packed", root / "vqvae")
    run_ranks(1, encode, root / "packed", root / "vqvae", root / "plain", 0)
    run_ranks(1, encode, root / "packed", root / "vqvae", root / "latents", COPIES)
    return root


def all_of(folder: Path, fields=("array", "meta")) -> list[dict]:
    dataset = ShardDataset(folder, fields=fields)
    return [dataset[i] for i in range(len(dataset))]


def test_copies_stand_beside_the_images_and_validation_has_none(root):
    plain, views = all_of(root / "plain" / "train", ("array",)), all_of(root / "latents" / "train")
    assert (root / "latents/val/index.json").read_bytes() == (root / "plain/val/index.json").read_bytes()
    assert len(views) == (1 + COPIES) * len(plain)
    for j, view in enumerate(views):
        image = plain[j // (1 + COPIES)]
        assert view["meta"]["image"] == image["key"]
        assert view["meta"]["copy"] == j % (1 + COPIES)
        untouched = not any(view["meta"]["augment"])
        assert untouched or view["meta"]["copy"] > 0
        assert np.allclose(view["array"], image["array"], atol=1e-4) or not untouched
    statistics = [json.loads((root / name / "statistics.json").read_text()) for name in ("plain", "latents")]
    assert statistics[0]["count"] == statistics[1]["count"]
    assert np.allclose(statistics[0]["mean"], statistics[1]["mean"], atol=1e-4)


def test_copies_are_the_same_bytes_on_any_ranks(root, tmp_path):
    run_ranks(2, encode, root / "packed", root / "vqvae", tmp_path / "two", COPIES)
    for name in ("train/index.json", "val/index.json", "statistics.json"):
        assert (tmp_path / "two" / name).read_bytes() == (root / "latents" / name).read_bytes()


def refused(root: Path, copies: int) -> str:
    from shards.errors import UserError

    try:
        encode(root / "packed", root / "vqvae", root / "latents", copies)
    except UserError as error:
        return str(error)
    return ""


def test_a_folder_with_other_copies_is_refused(root):
    (message,) = run_ranks(1, refused, root, 2)
    assert "augment_copies: 3 there, 2 now" in message


def train_ridge(root: Path, output: Path, changes: dict) -> None:
    settings = {"condition_on": "speed", "latents_dir": root / "latents", "epochs": 1, **changes}
    train_ldm((root / "packed", root / "vqvae"), output, **settings)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "run"
    changes = {
        "epochs": 40, "val_epochs": 40, "lr": 3e-3, "save_images": True, "condition_dropout": 0.1, "warmup_steps": 5,
        "ema_half_life": 200, "batch_size": 16, "eval_steps": 10_000,
    }  # fmt: skip
    run_ranks(1, train_ridge, root, output, changes)
    return output


def test_the_path_is_the_same_on_any_ranks_with_copies_and_conditions(root, tmp_path):
    run_ranks(1, train_ridge, root, tmp_path / "one", {})
    run_ranks(2, train_ridge, root, tmp_path / "two", {"zero_stage": 2})
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    run_ranks(1, train_ridge, root, tmp_path / "without", {"augment_probability": 0.0})
    assert losses(tmp_path / "without") != losses(tmp_path / "one")


def train_compiled(device: str, root: Path, output: Path) -> dict[str, int]:
    """Train without and with --compile in a process of its own; return dynamo's counts of the second."""
    choose(device)
    import torch

    from mdaug import distributed

    if device == "cpu":  # traced as always, without a C compiler
        distributed.require_compiler = lambda: None
        torch.compile = partial(torch.compile, backend="eager")
    changes = {"save_images": True, "eval_steps": 2}
    train_ridge(root, output / "plain", changes)
    train_ridge(root, output / "compiled", {**changes, "compile": True})
    counters = torch._dynamo.utils.counters
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": len(counters["graph_break"])}


@DEVICES
def test_compiled_once_with_copies_conditions_accumulation_validation_and_pictures(device, root, tmp_path):
    (found,) = run_ranks(1, train_compiled, device, root, tmp_path)
    assert found == {"graphs": 1, "breaks": 0}
    tolerance = 1e-5 if device == "cpu" else 1e-2
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=tolerance)


def test_a_condition_decides_what_is_sampled(root, trained):
    """Sampled at two speeds, latents lie near those of the images of that speed."""
    import torch

    from mdaug.pipeline.pipeline import MicroDopplerPipeline

    pipeline = MicroDopplerPipeline.from_pretrained(trained / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.augment_embedding is not None
    dataset, meta = all_of(root / "plain" / "train", ("array",)), all_of(root / "packed" / "train", ("meta",))
    speeds = np.array([float(item["meta"]["speed"]) for item in meta])
    mean, std = (np.array(pipeline.config[f"latent_{name}"])[:, None, None] for name in ("mean", "std"))
    latents = np.stack([(item["array"] - mean) / std for item in dataset])
    near = {speed: latents[np.abs(speeds - speed) < 1.5].mean(0) for speed in (4, 12)}
    for speed, other in ((4, 12), (12, 4)):
        made = pipeline(
            "ridge",
            num_images_per_prompt=8,
            generator=[torch.Generator().manual_seed(i) for i in range(8)],
            num_inference_steps=10,
            output_type="latent",
            conditions={"speed": float(speed)},
        ).images.numpy()
        to_own, to_other = (((made - near[s]) ** 2).mean((1, 2, 3)) for s in (speed, other))
        assert (to_own < to_other).all()


def test_samples_are_shown_beside_their_nearest_training_images(trained):
    (picture,) = (trained / "generated_images").glob("*.png")
    assert np.asarray(Image.open(picture)).shape[0] == 2 * (16 + 2)  # a row of samples and one of their nearest
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (figures,) = [record for record in records if "images/nearest_ratio" in record]
    assert figures["images/nearest_train"] > 0
    assert figures["images/nearest_ratio"] == pytest.approx(
        figures["images/nearest_train"] / figures["images/nearest_train_of_val"]
    )
