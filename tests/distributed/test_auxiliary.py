"""Trainings with auxiliary images and balanced classes: the same on any ranks, exact resume, and what comes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mdaug.generation.generate import run as generate
from mdaug.generation.options import GenerateConfig
from shards import provenance
from shards.dataset import ShardDataset
from shards.index import content_hash
from tests.ranks import run_ranks
from tests.toy import CLASSES, toy_image, unequal_packed
from tests.trainings import averaged, losses, train_ldm_with, train_vqvae, weights

DRAWN = {"aux_share": 0.25, "balance_classes": True}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Few images of the target, unequally many of its classes, and more of two other persons."""
    root = tmp_path_factory.mktemp("sets")
    few = {name: (count, 2) for name, count in zip(CLASSES, (3, 5, 9, 20), strict=True)}
    target = unequal_packed(root / "target", few, size=16)
    return target, unequal_packed(root / "others", {"anna": (30, 4), "ben": (8, 4)}, size=16, seed=50)


def train_vqvae_with(packed, output, changes: dict, stop_after=None) -> None:
    train_vqvae(packed, output, stop_after, **changes)


def train_ldm_stopping(folders, output, stop_after: int, changes: dict) -> None:
    from tests.trainings import train_ldm

    train_ldm(folders, output, stop_after, **changes)


@pytest.fixture(scope="module")
def vqvae(sets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("vqvae") / "run"
    run_ranks(1, train_vqvae_with, sets[0], output, {**DRAWN, "aux_dir": sets[1]})
    return output


@pytest.fixture(scope="module")
def ldm(sets, vqvae, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ldm") / "run"
    run_ranks(1, train_ldm_with, (sets[0], vqvae), output, {**DRAWN, "aux_dir": sets[1]})
    return output


@pytest.mark.parametrize("ranks", [2, 4])
def test_both_trainings_are_the_same_for_any_ranks(sets, vqvae, ldm, tmp_path, ranks):
    changes = {**DRAWN, "aux_dir": sets[1]}
    run_ranks(ranks, train_vqvae_with, sets[0], tmp_path / "vqvae", changes)
    assert losses(tmp_path / "vqvae")[:5] == pytest.approx(losses(vqvae)[:5], rel=1e-4)
    run_ranks(ranks, train_ldm_with, (sets[0], vqvae), tmp_path / "ldm", changes)
    assert losses(tmp_path / "ldm")[:10] == pytest.approx(losses(ldm)[:10], rel=1e-5)
    assert losses(tmp_path / "ldm") == pytest.approx(losses(ldm), rel=1e-4)


def test_a_training_that_was_stopped_within_an_epoch_goes_on_exactly(sets, vqvae, ldm, tmp_path):
    changes = {**DRAWN, "aux_dir": sets[1]}
    run_ranks(1, train_ldm_stopping, (sets[0], vqvae), tmp_path / "ldm", 5, changes)
    run_ranks(1, train_ldm_with, (sets[0], vqvae), tmp_path / "ldm", changes)
    assert losses(tmp_path / "ldm") == losses(ldm)
    for name, value in averaged(tmp_path / "ldm").items():
        np.testing.assert_array_equal(value, averaged(ldm)[name], err_msg=name)
    run_ranks(1, train_vqvae_with, sets[0], tmp_path / "vqvae", changes, 4)
    run_ranks(1, train_vqvae_with, sets[0], tmp_path / "vqvae", changes)
    for name, value in weights(tmp_path / "vqvae").items():
        np.testing.assert_array_equal(value, weights(vqvae)[name], err_msg=name)


def test_other_auxiliary_images_are_another_run(sets, vqvae, ldm):
    with pytest.raises(pytest.fail.Exception, match=r"made from auxiliary: \w+ there, none now"):
        run_ranks(1, train_ldm_with, (sets[0], vqvae), ldm, DRAWN)
    with pytest.raises(pytest.fail.Exception, match=r"aux_share: 0.25 there, 0.5 now"):
        run_ranks(1, train_ldm_with, (sets[0], vqvae), ldm, {**DRAWN, "aux_dir": sets[1], "aux_share": 0.5})


def test_the_pipeline_names_its_auxiliary_classes_and_generate_makes_them_when_named(sets, vqvae, ldm, tmp_path):
    images, others = (provenance.read(folder, "images")["hash"] for folder in sets)
    record = provenance.read(ldm / "pipeline", "pipeline")
    assert (record["made_from"]["images"], record["made_from"]["auxiliary"]) == (images, others)
    assert record["config"]["auxiliary_classes"] == ["anna", "ben"]
    assert provenance.read(vqvae / "best", "vqvae")["made_from"] == {"images": images, "auxiliary": others}
    index = json.loads((ldm / "pipeline" / "model_index.json").read_text())
    assert index["classes"] == [*CLASSES, "anna", "ben"]
    assert index["auxiliary"] == ["anna", "ben"]
    # The scale is that of the latents of the target.
    statistics = json.loads((ldm / "latents" / "statistics.json").read_text())
    assert index["latent_mean"] == statistics["mean"]
    common = {"num_inference_steps": 2, "batch_size": 4}
    generate(GenerateConfig(ldm, tmp_path / "own", num_samples=8, **common))
    made = ShardDataset(tmp_path / "own")
    assert made.classes == CLASSES
    assert np.bincount(made.labels).tolist() == [2, 2, 2, 2]
    generate(GenerateConfig(ldm, tmp_path / "named", num_samples=3, classes=["ben"], **common))
    made = ShardDataset(tmp_path / "named", fields=("meta",))
    assert [made[i]["meta"]["class"] for i in range(3)] == ["ben"] * 3


def test_image_folders_and_sets_without_held_out_images_are_packed_and_encoded(sets, vqvae, tmp_path):
    rng = np.random.default_rng(3)
    for person in ("dora", "emil"):
        (tmp_path / "mine" / person).mkdir(parents=True)
        for i in range(4):
            picture = Image.fromarray(toy_image(i % 4, rng, 16)[:, :, 0])
            picture.save(tmp_path / "mine" / person / f"{i}.png")
    whole = unequal_packed(tmp_path / "whole", {"fred": (6, 0), "gina": (6, 0)}, size=16, seed=70)
    shutil.rmtree(whole / "val")
    provenance.write(whole, kind="images", content_hash=content_hash(whole), made_from={}, config={})
    short = {"train_samples": 32, "aux_dir": [tmp_path / "mine", whole]}
    run_ranks(2, train_ldm_with, (sets[0], vqvae), tmp_path / "ldm", short)
    index = json.loads((tmp_path / "ldm" / "pipeline" / "model_index.json").read_text())
    assert index["auxiliary"] == ["dora", "emil", "fred", "gina"]


def test_latents_of_the_auxiliary_images_may_be_given(sets, vqvae, ldm, tmp_path):
    given = ldm / "auxiliary_latents" / "0"
    run_ranks(1, train_ldm_with, (sets[0], vqvae), tmp_path / "ldm", {**DRAWN, "aux_dir": given})
    assert losses(tmp_path / "ldm") == losses(ldm)


def test_a_training_starts_where_another_one_ended(sets, vqvae, ldm, tmp_path):
    """Two persons of a base model: one is the target now, and a new one comes to her."""
    target = unequal_packed(tmp_path / "target", {"ben": (5, 2), "carl": (5, 2)}, size=16, seed=90)
    # Of a rate so low that nothing changes: what is exported is what it began with.
    still = {"lr": 1e-12, "weight_decay": 0.0, "train_samples": 16, "init_from": ldm, "ema_profiles": ()}
    run_ranks(1, train_ldm_with, (target, vqvae), tmp_path / "ldm", still)
    after = averaged(tmp_path / "ldm")
    assert provenance.read(tmp_path / "ldm" / "pipeline", "pipeline")["made_from"]["init_from"] is not None
    best = ldm / "best" / "unet" / "diffusion_pytorch_model.safetensors"
    before = load_file(best)
    rows, new = (weights_.pop("class_embedding.weight") for weights_ in (before, after))
    np.testing.assert_allclose(new, np.stack([rows[5], rows[:6].mean(0), rows[6]]), atol=1e-5)
    for name, value in after.items():
        np.testing.assert_allclose(value, before[name], atol=1e-5, err_msg=name)
    run_ranks(1, train_vqvae_with, target, tmp_path / "vqvae", {"lr": 1e-12, "train_samples": 8, "init_from": ldm})
    named = "encoder.conv_in.weight"
    there = load_file(ldm / "best" / "vqvae" / "diffusion_pytorch_model.safetensors")[named]
    np.testing.assert_allclose(weights(tmp_path / "vqvae")[named], there, atol=1e-6)


def test_images_of_the_target_are_refused_on_every_rank_before_anything_is_made(sets, vqvae, tmp_path):
    with pytest.raises(pytest.fail.Exception, match=r"45 images of aux_dir .* are training and held-out images"):
        run_ranks(2, train_ldm_with, (sets[0], vqvae), tmp_path / "ldm", {"aux_dir": sets[0], "same_names": "other"})
    assert not (tmp_path / "ldm").exists()
