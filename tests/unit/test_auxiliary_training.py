"""What a training with auxiliary images is shown: their share of each batch, their classes, their conditions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import default_collate

from mdaug import augment
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.vqvae_task import VQVAETask
from shards.dataset import ShardDataset
from shards.index import content_hash, write_index
from shards.order import EpochOrder
from shards.writer import write_shard
from tests.toy import CLASSES, unequal_packed
from tests.toy_latents import SHAPE, auxiliary_latents, task_of, toy_latents


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    return toy_latents(tmp_path / "toy", train=24, val=4)


def test_each_batch_holds_the_share_and_auxiliary_classes_come_behind_those_of_the_target(folders, tmp_path):
    first = auxiliary_latents(tmp_path / "a", folders["vqvae"], ["anna", "ben"], [0] * 9 + [1] * 3)
    alone = auxiliary_latents(tmp_path / "b", folders["vqvae"], ["simulated"], [0] * 12, seed=6)
    trained = task_of(folders, [first, alone], aux_share=0.25, label_dropout=0.0, balance_classes=True)
    assert trained.classes == [*CLASSES, "anna", "ben"]
    assert trained.auxiliary == ["anna", "ben"]
    shown = [trained.dataset[position]["label"] for position in range(24 * 12)]
    for start in range(0, len(shown), 16):
        assert sum(label >= 4 for label in shown[start : start + 16]) == 4
    counts = Counter(shown)
    assert max(counts[i] for i in range(4)) - min(counts[i] for i in range(4)) <= 1
    assert max(counts[i] for i in (4, 5, 6)) - min(counts[i] for i in (4, 5, 6)) <= 1  # 6: no class
    assert trained.epoch == 32  # 24 images of the target are three quarters of it
    assert trained.module.config.num_classes == 6
    assert trained.diffuse.null_label == 6
    # One scale: that of the target's latents.
    statistics = json.loads((folders["latents"] / "statistics.json").read_text())
    assert trained.statistics["mean"] == statistics["mean"]
    at = next(position for position, label in enumerate(shown) if label == 4)
    raw = trained.dataset.dataset[trained.dataset.order.index(at)]["array"]
    mean, std = (np.array(statistics[name])[:, None, None] for name in ("mean", "std"))
    np.testing.assert_allclose(trained.dataset[at]["latent"], (raw - mean) / std, rtol=1e-5)
    # The pipeline says which are which, and pictures show the target alone.
    assert trained.pipeline(trained.module).config.auxiliary == ["anna", "ben"]
    assert "| 4 | anna (auxiliary) |" in trained.pipeline(trained.module).model_card()
    assert trained.pictures.classes == CLASSES


def test_without_auxiliary_images_a_training_sees_what_it_saw(folders):
    trained = task_of(folders, [])
    plain = EpochOrder(24, 0)
    assert [trained.dataset.order.index(p) for p in range(100)] == [plain.index(p) for p in range(100)]
    assert trained.epoch == 24
    assert trained.auxiliary == []
    assert trained.pipeline(trained.module).config.auxiliary is None


def test_an_image_without_class_is_shown_without_conditions(folders):
    trained = task_of(folders, [], label_dropout=0.0, condition_dropout=0.0)
    sample = {"array": np.zeros(SHAPE, np.float32), "label": 4, "conditions": np.ones(2, np.float32)}
    assert np.isnan(trained.diffuse(dict(sample), 0)["conditions"]).all()
    assert not np.isnan(trained.diffuse({**sample, "label": 1}, 0)["conditions"]).any()


def test_latents_with_and_without_copies_mix_in_one_batch(folders, tmp_path):
    others = auxiliary_latents(tmp_path / "a", folders["vqvae"], ["anna", "ben"], [0, 1] * 6)
    index = json.loads((others / "train" / "index.json").read_text())
    # As if encoded with two copies of each image: items 0, 3, 6, ... are the images.
    shards = ShardDataset(others / "train", fields=("array",))

    samples = [
        (
            f"c_{i:03d}",
            {
                "npy": shards.raw(i, "array"),
                "cls": str(i // 3 % 2).encode(),
                "json": json.dumps({"augment": [float(i % 3)] * augment.SIZE}).encode(),
            },
        )
        for i in range(12)
    ]
    write_shard(others / "train" / "000000.tar", samples)
    write_index(others / "train", index["classes"], latent_shape=list(SHAPE), copies=2)
    record = json.loads((others / "provenance.json").read_text())
    record |= {"hash": content_hash(others), "files": {}}
    (others / "provenance.json").write_text(json.dumps(record))
    trained = task_of(folders, [others], augment_probability=1.0, label_dropout=0.0)
    batch = default_collate([trained.dataset[position] for position in range(16)])
    told, label = batch["augment"][:, 0], batch["label"]
    assert set(told[label < 4].tolist()) == {0.0}
    assert set(told[label >= 4].tolist()) == {1.0, 2.0}
    assert trained.module.augment_embedding is not None


def test_the_vqvae_draws_the_same_share_and_starts_its_codes_from_both(tmp_path):
    target = unequal_packed(tmp_path / "t", {"a": (9, 2), "b": (3, 2)}, size=16)
    others = unequal_packed(tmp_path / "o", {"a": (20, 1), "c": (4, 1)}, size=16, meta={"x": 1})
    options = VQVAEConfig(
        data_dir=target, output_dir=tmp_path / "run", image_size=16, n_layers=1, base_channels=8, vq_num_embed=16,
        aux_dir=others, aux_share=0.25, balance_classes=True,
    )  # fmt: skip
    trained = VQVAETask(options, target, {"images": "1", "auxiliary": "2"}, [others])
    shown = np.array([trained.dataset.order.index(position) for position in range(480)])
    assert ((shown >= 12).reshape(-1, 16).sum(1) == 4).all()
    labels = trained.train_set.labels
    assert np.bincount(labels[shown[shown < 12]]).tolist() == [180, 180]
    assert len(np.unique(shown[shown >= 12])) == 26  # its two splits
    assert trained.num_images == 38
    assert trained.epoch == 16
