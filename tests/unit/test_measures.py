"""The measures against known answers: closed forms, scikit-image, sets whose truth is built in."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import metrics as skimage_metrics

from mdaug.augment import TODAY, Policy
from mdaug.evaluation import comparisons
from mdaug.measures import classifier
from mdaug.measures.image_quality import PSNR_LIMIT, psnr, ssim
from mdaug.measures.image_set import preprocess
from shards.errors import UserError
from shards.subset import take_per_class


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def spectrogram_like(rng, channels):
    noise = torch.from_numpy(rng.random((2, channels, 40, 56)))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    return (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).round()


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_agree_with_scikit_image(rng, channels):
    first = spectrogram_like(rng, channels)
    second = (first + torch.from_numpy(20 * rng.standard_normal(first.shape))).clamp(0, 255).round()
    ours = psnr(first, second), ssim(first, second)
    for i in range(2):
        a, b = (np.moveaxis(x[i].numpy(), 0, -1).astype(np.uint8) for x in (first, second))
        assert ours[0][i] == pytest.approx(skimage_metrics.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-4)
        theirs = skimage_metrics.structural_similarity(
            a, b, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours[1][i] == pytest.approx(theirs, abs=1e-4)


def test_identical_images_have_ssim_one_and_a_finite_psnr(rng):
    image = spectrogram_like(rng, 1)
    assert torch.allclose(ssim(image, image), torch.ones(2, dtype=torch.float64))
    assert (psnr(image, image) == PSNR_LIMIT).all()


def test_preprocess_leaves_no_trace_of_an_earlier_jpeg(rng):
    smooth = spectrogram_like(rng, 3)[0, :, :, :40].numpy().astype(np.uint8).transpose(1, 2, 0).copy()
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", quality=90, subsampling=0)
    from_jpeg = np.asarray(Image.open(file))
    before = np.abs(smooth.astype(int) - from_jpeg).mean()
    after = np.abs(preprocess(smooth, 40).astype(int) - preprocess(from_jpeg, 40)).mean()
    assert after < 0.6 * before


def test_take_per_class_is_a_fixed_subset_of_each_class():
    labels = np.repeat([0, 1, 2], [5, 50, 500])
    chosen = take_per_class(labels, 10, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [5, 10, 10]
    assert (chosen == take_per_class(labels, 10, seed=1)).all()
    assert (chosen != take_per_class(labels, 10, seed=2)).any()


def test_transforms_never_move_along_doppler(rng):
    images = torch.full((4, 1, 16, 16), -1.0)
    images[:, :, 5] = 0.5  # one Doppler line, at all times
    images[:, :, 9, 3] = 0.5  # one short flash
    moved = TODAY(images, np.random.default_rng(0))
    assert (moved[:, 0, 5] > 0.2).all()
    assert ((moved[:, 0, 9] > 0.0).sum(dim=1) == 1).all()
    assert (moved[:, 0, 9].argmax(dim=1) != 3).any()
    assert (moved[:, 0, [0, 1, 2, 3, 4, 6, 7, 8]] < 0).all()


def test_same_seed_same_classifier(rng):
    images, labels = rng.integers(0, 256, (12, 16, 16, 1), dtype=np.uint8), np.arange(12) % 3
    options = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2, "policy": TODAY}
    first, again, other = (classifier.train(images, labels, 3, seed=seed, **options) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_timm_models_train_by_name_and_other_names_are_refused(rng, monkeypatch):
    images, labels = rng.integers(0, 256, (8, 32, 32, 1), dtype=np.uint8), np.arange(8) % 2
    options = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "seed": 0}
    model = classifier.train(images, labels, 2, network="resnet10t", **options)
    predicted, features = classifier.outputs(model, images)
    assert set(predicted) <= {0, 1}
    assert features.shape == (8, 512)
    with pytest.raises(UserError, match="resnet_nobody_made"):
        classifier.build("resnet_nobody_made", 1, 2, 32)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        classifier.build("resnet10t", 1, 2, 32)


def test_interval_covers_chance_and_excludes_zero_for_a_real_gain(rng):
    groups, labels = [str(i // 4) for i in range(200)], np.arange(200) // 50
    base = rng.random((3, 200)) < 0.6
    difference, low, high = comparisons.paired_interval(rng.random((3, 200)) < 0.6, base, labels, groups)
    assert low < 0 < high
    assert low < difference < high
    difference, low, _ = comparisons.paired_interval(base | (rng.random((3, 200)) < 0.5), base, labels, groups)
    assert 0 < low < difference


def test_interval_is_as_wide_as_a_few_seeds_that_disagree_demand(rng):
    """Seeds that differ by chance alone: a bootstrap over three of them calls every sixth such case a difference."""
    false_alarms = 0
    for _ in range(100):
        share = 0.5 + rng.normal(0, 0.1, (2, 3, 1))  # of hits, per arm and seed; no arm is better
        first, second = rng.random((2, 3, 300)) < share
        _, low, high = comparisons.paired_interval(first, second, np.arange(300) % 3, [str(i) for i in range(300)])
        false_alarms += low > 0 or high < 0
    assert false_alarms <= 8  # 5 are expected


def test_interval_over_groups_is_wider_where_recordings_fall_together(rng):
    together = np.repeat(rng.random((1, 20)) < 0.5, 10, axis=1)
    nothing, labels = np.zeros_like(together), np.arange(200) // 100
    by_group = comparisons.paired_interval(together, nothing, labels, [str(i // 10) for i in range(200)])
    by_image = comparisons.paired_interval(together, nothing, labels, [str(i) for i in range(200)])
    assert by_group[2] - by_group[1] > 2 * (by_image[2] - by_image[1])


def test_judge_counts_recall_and_confusion():
    table = comparisons.judge([[0, 1, 1], [0, 0, 1]], np.array([0, 0, 1]), 3)
    assert table["accuracies"] == pytest.approx([(1 / 2 + 1) / 2, 1.0])
    assert table["plain_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert table["confusion"] == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert table["recall"] == [0.75, 1.0, None]


def test_a_training_ends_by_its_loss_between_floor_and_ceiling():
    falling = np.geomspace(3, 0.1, 4000)
    steps = next(n for n in range(4000) if classifier.settled(falling[:n]))
    assert steps == classifier.CEILING
    assert classifier.settled(np.full(600, 1.0))
    assert not classifier.settled(np.full(599, 0.0))
    assert classifier.settled(np.geomspace(1, 1e-6, 600))  # falls still, but is as good as zero


def test_a_settled_training_decays_for_a_third_of_its_steps_and_sees_no_held_out_image(rng, monkeypatch):
    monkeypatch.setattr(classifier, "WINDOW", 4)
    monkeypatch.setattr(classifier, "FLOOR", 12)
    monkeypatch.setattr(classifier, "CEILING", 24)
    images, labels = rng.integers(0, 256, (12, 16, 16, 1), dtype=np.uint8), np.arange(12) % 3
    losses: list[float] = []
    options = {"steps": "settled", "batch_size": 8, "learning_rate": 1e-2, "seed": 0}
    model = classifier.train(images, labels, 3, losses=losses, **options)
    assert len(losses) in {n + round(n / 3) for n in (12, 16, 20, 24)}
    again = classifier.train(images, labels, 3, **options)
    assert torch.equal(model.head.weight, again.head.weight)


def test_sources_have_their_shares_and_classes_are_drawn_alike():
    main = classifier.Source(np.zeros((103, 16, 16, 1), np.uint8), np.repeat([0, 1], [100, 3]), 0.65)
    soft = classifier.Source(np.full((5, 16, 16, 1), 255, np.uint8), np.full((5, 4), 0.25, np.float32), 0.25)
    rare = classifier.Source(np.full((7, 16, 16, 1), 128, np.uint8), np.repeat([2, 3], [6, 1]), 0.1)
    stream = classifier._Stream([main, soft, rare], 4, seed=0)
    batches = [stream.next(32) for _ in range(100)]
    for images, _ in batches:  # in every batch, not only on average
        assert abs(int((images[:, 0, 0, 0] == 1).sum()) - 8) <= 1
    targets = torch.cat([target for _, target in batches])
    uniform = (targets == 0.25).all(1)
    assert abs(float(uniform.float().mean()) - 0.25) < 0.01
    counts = targets[~uniform].sum(0)
    assert abs(counts[0] - counts[1]) <= 2
    assert abs(counts[2] - counts[3]) <= 2
    again = classifier._Stream([main, soft, rare], 4, seed=0)
    assert torch.equal(again.next(32)[1], batches[0][1])


def test_predictions_are_averaged_over_copies_and_other_classes_are_left_out(rng):
    images, labels = rng.integers(0, 256, (8, 16, 16, 1), dtype=np.uint8), np.arange(8) % 2
    model = classifier.train(images, labels, 3, steps=3, batch_size=8, learning_rate=1e-3, seed=0)
    plain = classifier.predict(model, images, num_classes=2)
    assert plain.shape == (8, 2)
    assert np.allclose(plain.sum(1), 1)
    assert np.allclose(classifier.predict(model, images, Policy(copies=4), num_classes=2), plain)  # nothing is changed
    policy = replace(TODAY, copies=4)
    assert not np.allclose(classifier.predict(model, images, policy, num_classes=2), plain)
    assert np.array_equal(classifier.predict(model, images, policy), classifier.predict(model, images, policy))
