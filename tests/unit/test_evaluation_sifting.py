"""Sifting in the experiment: what it keeps, who has a say in it, and the arms it adds."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.measure import limit_setters, sift, sifted_images
from mdaug.evaluation.options import EvaluateConfig
from mdaug.evaluation.usefulness import BOTH, SIFTED, WITH_SIFTED, WITH_SIFTED_TRANSFORMS, plan_jobs, training_images
from mdaug.measures import image_set
from shards import provenance
from shards.dataset import ShardDataset
from shards.index import content_hash, write_index
from shards.writer import write_shard
from tests.toy import CLASSES, toy_packed, toy_synthetic

SIZE = 32


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return toy_packed(tmp_path_factory.mktemp("packed"), size=SIZE, train=160, val=80)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory, packed):
    """64 good images, and 32 of the next class under a wrong label."""
    folder = toy_synthetic(tmp_path_factory.mktemp("synthetic"), packed)
    wrong = toy_synthetic(tmp_path_factory.mktemp("wrong"), packed, per_class=8, shift=1)
    (wrong / "000000.tar").rename(folder / "000001.tar")
    record = json.loads((wrong / "000000.json").read_text()) | {"file": "000001.tar"}
    (folder / "000001.json").write_text(json.dumps(record))
    write_index(folder, CLASSES)
    return folder


@pytest.fixture(scope="module")
def sets(packed, synthetic):
    folders = (packed / "train", packed / "val", synthetic)
    return [image_set.load(folder, image_size=SIZE, max_per_class=1000) for folder in folders]


@pytest.fixture(scope="module")
def sifting(sets, tmp_path_factory):
    return sift(*sets, steps=120, file=tmp_path_factory.mktemp("sifting") / "sifting.json")


def test_wrong_labels_are_sifted_out_and_good_images_stay(sifting):
    out = np.array([reason != "" for reason in sifting["reasons"]["synthetic"]])
    assert out[64:].mean() > 0.9
    assert out[:64].mean() < 0.35  # four measures of 5 % each, with few images to set the limits
    held_out = np.array([reason != "" for reason in sifting["reasons"]["held_out"]])
    assert held_out.mean() < 0.35


def test_held_out_images_have_no_say_in_what_is_kept(sets, sifting, tmp_path):
    train, held_out, fake = sets
    other = replace(held_out, labels=(held_out.labels + 1) % 4)
    again = sift(train, other, fake, steps=120, file=tmp_path / "sifting.json")
    assert again["reasons"]["synthetic"] == sifting["reasons"]["synthetic"]
    assert again["reasons"]["held_out"] != sifting["reasons"]["held_out"]


def test_limits_come_from_groups_of_their_own(sets):
    train = sets[0]
    limits = limit_setters(train)
    assert not set(np.array(train.groups)[limits]) & set(np.array(train.groups)[~limits])
    assert np.bincount(train.labels[limits]).tolist() == [10] * 4
    alone = replace(train, groups=["one recording"] * len(train))
    assert np.bincount(train.labels[limit_setters(alone)]).tolist() == [10] * 4


def test_a_judgement_is_made_once(sets, sifting, tmp_path):
    file = tmp_path / "sifting.json"
    file.write_text(json.dumps(sifting))
    assert sift(*sets, steps=1, file=file) == sifting


def test_sifted_arms_differ_from_the_others_in_the_rejected_images_only(sets, sifting):
    train, _, fake = sets
    kept = sifted_images(sifting, fake)
    jobs = plan_jobs([5], [1, 2], 1, train, fake, kept)
    arms = {(job.arm, job.ratio): job for job in jobs}
    assert {ratio for arm, ratio in arms if arm in (WITH_SIFTED, WITH_SIFTED_TRANSFORMS)} == {2}
    (mine, further), _ = training_images(arms[WITH_SIFTED, 2], train, fake, kept)
    (theirs, all_further), _ = training_images(arms[BOTH, 2], train, fake, kept)
    assert np.array_equal(mine, theirs)
    assert len(further) == len(all_further) == 40
    allowed = {image.tobytes() for image in kept.images}
    assert all(image.tobytes() in allowed for image in further)
    assert not all(image.tobytes() in allowed for image in all_further)
    assert not {SIFTED, WITH_SIFTED} & {job.arm for job in plan_jobs([5], [1], 1, train, fake, None)}


def test_the_report_shows_both_and_what_the_sifter_does_to_real_images(packed, synthetic, tmp_path):
    options = {"steps": 20, "batch_size": 8, "image_size": SIZE, "seeds": 1, "workers": 1}
    config = EvaluateConfig(
        packed, synthetic, tmp_path / "out", n_real_per_class=[5], synthetic_per_real=[2], **options
    )
    metrics = evaluate(replace(config, part="usefulness"))
    compared = {(item["arm"], item["baseline"]) for item in metrics["usefulness"]["comparisons"]}
    assert (WITH_SIFTED, BOTH) in compared
    share = metrics["usefulness"]["sifting"]["share"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{100 * share['held_out']:.1f} % of the held-out real images" in metrics["verdict"]["sentences"][1]
    assert "rejected by the sifter" in text
    assert not metrics["usefulness"]["sifting"]["already_sifted"]


def test_of_a_mixed_set_the_synthetic_images_are_measured_as_if_they_were_alone(packed, tmp_path):
    alone, mixed = (toy_synthetic(tmp_path / name, packed) for name in ("alone", "mixed"))
    train = ShardDataset(packed / "train", fields=("image", "meta"))
    samples = []
    for i in range(8):
        file = io.BytesIO()
        Image.fromarray(train[i]["image"][..., 0]).save(file, "PNG")
        members = {"png": file.getvalue(), "cls": str(train.labels[i]).encode(), "json": b'{"source": "real"}'}
        samples.append((f"real_{i:09d}", members))
    write_shard(mixed / "real-000000.tar", samples)
    write_index(mixed, CLASSES)
    made_from = provenance.read(alone, "synthetic")["made_from"]
    provenance.write(mixed, kind="mixed", content_hash=content_hash(mixed), made_from=made_from, config={})
    assert len(ShardDataset(mixed)) == 72
    metrics = []
    for folder in (alone, mixed):
        config = EvaluateConfig(packed, folder, tmp_path / f"of {folder.name}", image_size=SIZE, part="memorization")
        metrics.append(evaluate(config))
    assert metrics[0]["memorization"] == metrics[1]["memorization"]
    assert metrics[1]["memorization"]["synthetic_copies"] == 0
    for name in ("synthetic", "in_folders"):
        assert metrics[0]["data"][name] == metrics[1]["data"][name]
