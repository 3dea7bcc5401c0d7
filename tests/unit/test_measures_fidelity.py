"""Distances between sets of images: closed forms, an independent library, and sets with a known fault."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import prc_features_to_metric

from mdaug.measures import features, fidelity, image_quality, levels
from shards.colormap import COLORMAPS, colormap, paint


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_identical_sets_are_at_distance_zero_and_cover_each_other(rng):
    points = rng.standard_normal((200, 64))
    assert fidelity.frechet_distance(points, points) == pytest.approx(0, abs=1e-6)
    assert fidelity.manifold_shares(points, points) == {
        "precision": 1.0,
        "recall": 1.0,
        "density": pytest.approx(1.0),
        "coverage": 1.0,
    }


def test_frechet_distance_has_its_closed_form_for_gaussians(rng):
    # A set and its image under x -> s x + m have exactly the mean and covariance of the closed form.
    first = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 8))
    scale, shift = 1.7, rng.standard_normal(8)
    second = scale * first + shift
    mean = first.mean(axis=0)
    expected = ((mean - second.mean(axis=0)) ** 2).sum() + (scale - 1) ** 2 * np.trace(np.cov(first, rowvar=False))
    assert fidelity.frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_frechet_kernel_distance_precision_and_recall_agree_with_torch_fidelity(rng):
    real, other = rng.standard_normal((150, 16)), 1.3 * rng.standard_normal((150, 16)) + 0.2
    a, b = torch.from_numpy(real), torch.from_numpy(other)
    frechet = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    assert fidelity.frechet_distance(real, other) == pytest.approx(frechet["frechet_inception_distance"], abs=1e-4)
    assert fidelity.kernel_distance(real, other) == pytest.approx(kernel_mmd(real, other, kid_kernel="poly"), abs=1e-4)
    ours = fidelity.manifold_shares(real, other)
    theirs = prc_features_to_metric(b, a, prc_neighborhood=fidelity.NEIGHBOURS, verbose=False)  # generated first
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-4)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-4)
    assert 0.05 < ours["precision"] < 0.95


def test_kernel_distance_is_unbiased_and_finds_a_shift(rng):
    draws = [fidelity.kernel_distance(*rng.standard_normal((2, 40, 4))) for _ in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(len(draws))
    assert fidelity.kernel_distance(rng.standard_normal((200, 4)), rng.standard_normal((200, 4)) + 1) > 5 * np.std(
        draws
    )


def test_density_and_coverage_count_balls_as_by_hand():
    # Neighbours on a line: the balls of 0, 1 and 3 reach 1, 1 and 2 (k = 1).
    real, other = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [1.5], [9.0]])
    shares = fidelity.manifold_shares(real, other, k=1)
    assert shares["density"] == pytest.approx((2 + 2 + 0) / 3)  # 0.5 in those of 0 and 1; 1.5 in those of 1 and 3
    assert shares["coverage"] == 1.0
    assert shares["precision"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("chunk", [32, 1024])
def test_all_four_shares_are_those_of_prdc_whatever_the_size_of_the_blocks(rng, monkeypatch, chunk):
    monkeypatch.setattr(fidelity, "CHUNK", chunk)
    real, other = rng.standard_normal((90, 6)), rng.standard_normal((70, 6)) + 0.8
    expected = compute_prdc(real, other, nearest_k=fidelity.NEIGHBOURS)
    assert fidelity.manifold_shares(real, other) == pytest.approx(expected, abs=1e-4)
    assert all(0.2 < share < 0.95 for share in expected.values())


def test_a_dropped_mode_lowers_recall_and_not_precision(rng):
    modes = np.repeat([[0.0], [20.0]], 100, axis=0) + rng.standard_normal((200, 8))
    whole, fresh = modes, np.repeat([[0.0], [20.0]], 100, axis=0) + rng.standard_normal((200, 8))
    one = rng.standard_normal((200, 8))
    both, half = fidelity.manifold_shares(whole, fresh), fidelity.manifold_shares(whole, one)
    assert half["precision"] > 0.9 * both["precision"]
    assert half["recall"] < 0.6 * both["recall"]
    assert half["coverage"] < 0.6 * both["coverage"]


def test_floor_uses_equally_many_images_of_each_class(rng):
    train, train_labels = rng.standard_normal((300, 4)), np.arange(300) % 3
    held_out, held_out_labels = rng.standard_normal((60, 4)), np.repeat([0, 1, 2], [30, 20, 10])
    synthetic, synthetic_labels = rng.standard_normal((90, 4)), np.repeat([0, 1], [80, 10])
    table = fidelity.with_floor(train, train_labels, held_out, held_out_labels, synthetic, synthetic_labels)
    assert table["size"] == 30 + 10  # class 2 has no synthetic image
    same = fidelity.with_floor(train, train_labels, held_out, held_out_labels, held_out, held_out_labels)
    assert same["synthetic"] == same["floor"]
    moved = fidelity.with_floor(train, train_labels, held_out, held_out_labels, synthetic + 3, synthetic_labels)
    assert moved["synthetic"]["frechet"] > moved["floor"]["frechet"] + 10
    assert moved["synthetic"]["kid"] > moved["floor"]["kid"]
    assert moved["synthetic"]["precision"] < moved["floor"]["precision"]
    few = fidelity.with_floor(train, train_labels, held_out[:3], held_out_labels[:3], synthetic, synthetic_labels)
    assert (few["size"], few["synthetic"]) == (3, None)


def image_set(images, labels, classes=2):
    """Return what the measures need of an ImageSet."""
    dataset = SimpleNamespace(classes=[str(k) for k in range(classes)])
    return SimpleNamespace(images=images, labels=np.asarray(labels), dataset=dataset, original=lambda i: images[i])


def test_ms_ssim_is_one_for_one_picture_and_falls_with_variety(rng):
    noise = rng.integers(0, 256, (40, 64, 64, 1), dtype=np.uint8)
    repeated = np.concatenate([noise[:1]] * 20 + [noise[20:]])
    same, varied = image_quality.within_class(image_set(repeated, [0] * 20 + [1] * 20), pairs=20)
    assert same == pytest.approx(1.0)
    assert varied < 0.5
    assert image_quality.within_class(image_set(noise[:1], [0]))[0] is None
    # Three scales fit into 64 pixels; a constant picture moved in brightness differs at the coarsest scale only.
    flat = torch.full((1, 1, 64, 64), 100.0)
    luminance = (2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025)
    weight = image_quality.MS_SSIM_WEIGHTS[2] / sum(image_quality.MS_SSIM_WEIGHTS[:3])
    assert float(image_quality.ms_ssim(flat, flat + 20)) == pytest.approx(luminance**weight, rel=1e-6)


def test_random_network_is_fixed_and_tells_images_apart(rng):
    images = rng.integers(0, 256, (6, 32, 32, 1), dtype=np.uint8)
    first, again = (features.extract(features.random_network(1), images) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (6, features.RANDOM_FEATURES)
    assert np.linalg.norm(first[0] - first[1]) > 0


def test_networks_of_photographs_are_used_only_where_their_weights_are(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert list(features.networks(1)) == ["random network"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / features.DINO_WEIGHTS).touch()
    (tmp_path / features.DINO).mkdir()
    (tmp_path / features.DINO / "hubconf.py").write_text(
        "import torch\ndef dinov2_vits14(): return torch.nn.Sequential(torch.nn.AvgPool2d(112), torch.nn.Flatten())\n"
    )
    networks = features.networks(1)
    assert list(networks) == ["random network", "DINOv2"]
    assert features.extract(networks["DINOv2"], rng.integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)).shape == (3, 12)


def test_inception_features_come_from_local_weights(rng, tmp_path, monkeypatch):
    from torchvision.models import inception_v3

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        inception_v3(weights=None, init_weights=False).state_dict(), tmp_path / "checkpoints" / features.INCEPTION
    )
    network = features.networks(3)["Inception-v3"]
    assert features.extract(network, rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)).shape == (1, 2048)


@pytest.mark.parametrize("name", COLORMAPS)
def test_palette_is_told_from_the_training_images_and_a_colour_shift_is_measured(rng, name):
    scalar = rng.integers(0, 256, (4, 16, 16), dtype=np.uint8)
    coloured = colormap(name).palette[scalar]
    told = levels.palette(image_set(coloured, [0] * 4))
    assert told == ("jet-256" if name == "jet-64" else name)  # every fourth of the 256 colours is one of the 64
    # Up to four neighbouring levels share a colour in these tables of whole numbers.
    assert np.abs(levels.to_levels(coloured[0], told).astype(int) - scalar[0]).max() <= 4
    shifted = np.clip(coloured.astype(int) + np.array([0, 40, 0]), 0, 255).astype(np.uint8)
    assert levels.off_palette(image_set(coloured, [0] * 4), name).max() == 0
    assert levels.off_palette(image_set(shifted, [0] * 4), name).min() > 5


def test_pictures_without_a_known_palette_show_power_by_brightness(rng):
    scalar = rng.integers(0, 256, (4, 16, 16), dtype=np.uint8)
    assert levels.palette(image_set(scalar[..., None], [0] * 4)) == "gray"
    grey = np.repeat(scalar[..., None], 3, axis=-1)
    hot = np.clip(scalar[..., None] * 3.0 - np.array([0, 255, 510]), 0, 255).astype(np.uint8)
    assert levels.palette(image_set(grey, [0] * 4)) == levels.palette(image_set(hot, [0] * 4)) == "brightness"
    assert np.array_equal(levels.to_levels(grey[0], "brightness"), scalar[0])


@pytest.mark.parametrize("name", COLORMAPS)
def test_the_palette_of_jpeg_pictures_is_told(name):
    """Noise over an echo, enlarged as users' pictures are; the three kinds of jet count as one here."""
    rng = np.random.default_rng(0)
    coarse = np.clip(rng.normal(20, 12, (4, 64, 24)) + 180 * (np.arange(64) % 16 < 4)[:, None], 0, 255).astype(np.uint8)
    pictures = []
    for scalar in coarse:
        file = io.BytesIO()
        Image.fromarray(paint(scalar[..., None], name)).resize((96, 64), Image.Resampling.BILINEAR).save(file, "JPEG")
        pictures.append(np.asarray(Image.open(file)))
    told = levels.palette(image_set(np.stack(pictures), [0] * 4))
    assert told.replace("matplotlib-jet", "jet")[:3] == name.replace("matplotlib-jet", "jet")[:3]


def test_spectral_checks_see_a_raised_floor_and_the_doppler_of_the_power():
    clean = np.zeros((3, 64, 64), dtype=np.uint8)
    clean[:, 8:12] = 200
    noisy = np.maximum(clean, 60)
    first, second = (levels.summarize(images, np.arange(3)) for images in (clean, noisy))
    assert first["floor_share"] == pytest.approx(60 / 64)
    assert second["floor_share"] == 0
    assert second["dynamic_range"] == pytest.approx(140 / 255)
    assert int(np.argmax(first["doppler"])) in (4, 5)
    assert levels.histogram_distance(first, first) == 0
    assert levels.histogram_distance(first, second) == pytest.approx(60 / 64 * 60 / 256, abs=0.03)
