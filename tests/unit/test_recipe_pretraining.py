"""A classifier that begins with auxiliary images alone: what its first weights depend on, and where they are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mdaug.augment import RICHER, TODAY, Policy
from mdaug.measures import classifier
from mdaug.recipe import trials
from mdaug.recipe.trials import PRETRAINED, Images, Material, Trial, fit, pretrain, run_all, run_trial
from tests.toy import CLASSES, toy_image

FIRST = Trial("pretrained", RICHER, "labels", pretrain=True, fold=0)


@pytest.fixture(autouse=True)
def one_thread():
    with classifier.one_thread():
        yield


def pictures(count: int, of: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % of
    pixels = np.stack([toy_image(int(label), rng, 16) for label in labels])
    return Images(pixels, labels, [f"{seed}-{i // of}" for i in range(count)])


def material(shared_fold: int | None = None, of: int = 4, **settings) -> Material:
    """Auxiliary images of which the first eight may be of groups of a fold."""
    train, others = pictures(32, 4, 0), pictures(24, of, 1)
    shared = None if shared_fold is None else np.where(np.arange(24) < 8, shared_fold, -1)
    settings = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2} | settings
    return Material(CLASSES, train, np.arange(32) // 16, train, others, auxiliary_folds=shared, **settings)


def weights(model: classifier.Classifier) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def test_a_training_goes_on_from_the_classifier_that_it_is_given():
    images, settings = pictures(32, 4, 0), {"steps": 1, "batch_size": 8, "seed": 0}
    start = classifier.train(images.pixels, images.labels, 4, learning_rate=1e-2, **settings)
    before = weights(start).clone()
    still = classifier.train(images.pixels, images.labels, 4, learning_rate=1e-9, start=start, **settings)
    assert torch.allclose(weights(still), before, atol=1e-6)
    other = classifier.train(images.pixels, images.labels, 4, learning_rate=1e-9, **(settings | {"seed": 1}))
    assert not torch.allclose(weights(other), before, atol=1e-2)
    classifier.train(images.pixels, images.labels, 4, learning_rate=1e-2, start=start, **settings)
    assert torch.equal(weights(start), before)


def test_the_first_weights_depend_on_auxiliary_images_policy_and_seed_alone():
    one = weights(pretrain(FIRST, material()))
    for alike in (
        replace(FIRST, fold=1, arm="x", per_class=1, num_groups=2, subset=3, share=0.1),
        replace(FIRST, fold=None, synthetic=0.3),
        replace(FIRST, policy=replace(RICHER, copies=8)),
    ):
        assert torch.equal(weights(pretrain(alike, material())), one)
    for other in (replace(FIRST, seed=1), replace(FIRST, policy=TODAY)):
        assert not torch.equal(weights(pretrain(other, material())), one)
    assert len({path_of(FIRST), path_of(replace(FIRST, subset=2, fold=1)), path_of(replace(FIRST, seed=1))}) == 2


def path_of(trial: Trial) -> str:
    return trials._pretraining(trial, material()).name


@pytest.mark.parametrize("of", [4, 3])
def test_images_of_groups_that_are_judged_are_in_neither_stage(monkeypatch, of):
    given = []

    def train(images, labels, outputs, **settings):
        given.append(images)
        return classifier.build("small", 1, outputs, 16)

    monkeypatch.setattr(classifier, "train", train)
    task = material(shared_fold=1, of=of)
    trial = replace(FIRST, use="labels" if of == 4 else "classes")
    for fold, kept in ((0, slice(None)), (1, slice(8, None))):
        given.clear()
        fit(replace(trial, fold=fold), task)
        assert (given[0] == task.auxiliary.pixels[kept]).all()  # first the auxiliary images alone
        assert (given[1] == task.train.pixels[task.folds != fold]).all()  # then the training images alone
    names = {fold: trials._pretraining(replace(trial, fold=fold), task).name for fold in (0, 1, None)}
    assert names[0] == names[None] != names[1]


def test_a_network_of_further_classes_predicts_target_classes_alone():
    result = run_trial(replace(FIRST, use="classes"), material(of=3))
    assert set(result["plain"]) | set(result["averaged"]) <= {0, 1, 2, 3}
    assert fit(replace(FIRST, use="classes"), material(of=3)).head.out_features == 7


@pytest.mark.parametrize("workers", [1, 2])
def test_first_weights_are_made_once_and_kept(tmp_path, workers):
    task = material()
    planned = [replace(FIRST, fold=fold, seed=seed) for fold in (0, 1) for seed in (5, 6)]
    found = run_all([Trial("free", RICHER, fold=0), *planned], task, tmp_path, workers)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / PRETRAINED).iterdir()}
    assert len(kept) == 2  # one for each seed
    # The same as without a folder.
    alone = [run_trial(trial, task) for trial in planned]
    assert [(r["plain"], r["averaged"]) for r in found[1:]] == [(r["plain"], r["averaged"]) for r in alone]
    # Interrupted: what is missing is made from what is there.
    (tmp_path / f"{planned[3].name}.json").unlink()
    assert run_all(planned, task, tmp_path, workers) == found[1:]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / PRETRAINED).iterdir()} == kept


def test_pretraining_helps_where_others_show_the_same_classes():
    """Four images of noise and a faint class, and many of others: the few alone say nothing."""
    rng = np.random.default_rng(0)

    def noisy(count: int, group: str) -> Images:
        labels = np.arange(count) % 2
        pixels = 128 + 40 * rng.standard_normal((count, 16, 16, 1))
        for i, label in enumerate(labels):
            pixels[i, 6 * label + 2 : 6 * label + 6] += 25
        return Images(pixels.clip(0, 255).astype(np.uint8), labels, [group] * count)

    own, judged, others = noisy(4, "a"), noisy(200, "b"), noisy(200, "c")
    settings = {"steps": 60, "batch_size": 16, "learning_rate": 3e-3}
    task = Material(["x", "y"], own, np.array([]), judged, others, **settings)
    recalls = [
        np.mean(np.array(run_trial(trial, task)["plain"]) == judged.labels)
        for trial in (Trial("free", Policy()), Trial("first", Policy(), "labels", pretrain=True))
    ]
    assert recalls[1] > recalls[0] + 0.1
