"""What reconstructions are judged by, and the command that judges them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.options import EvaluateConfig, ReconstructConfig
from mdaug.evaluation.reconstruct import FAMILIAR, format_goals, goals, smaller
from mdaug.evaluation.reconstruct import run as reconstruct
from mdaug.measures.image_quality import MEASURES, as_tensor, envelope_error, heights, measure, ms_ssim, sharpness, ssim
from mdaug.models.vqvae import build_vqvae, save_vqvae
from shards import provenance
from shards.colormap import paint
from shards.errors import UserError
from tests.toy import toy_image, toy_packed, toy_synthetic


def pictures(count: int = 4, size: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([toy_image(i % 4, rng, size) for i in range(count)])


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(images, (0, sigma, sigma, 0))


def test_ms_ssim_is_the_product_over_the_scales():
    """Against the definition, written out with scipy for one channel: two scales fit into 32 pixels."""
    image = pictures(2, 32)
    copy = blurred(image, 1.0)

    def parts(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def window(x: np.ndarray) -> np.ndarray:
            return gaussian_filter(x, 1.5, truncate=3.4)[5:-5, 5:-5]

        mean_a, mean_b = window(a), window(b)
        var_a, var_b, cov = window(a * a) - mean_a**2, window(b * b) - mean_b**2, window(a * b) - mean_a * mean_b
        c1, c2 = 2.55**2, 7.65**2
        return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), (2 * cov + c2) / (var_a + var_b + c2)

    def halved(x: np.ndarray) -> np.ndarray:
        return x.reshape(16, 2, 16, 2).mean((1, 3))

    for i, value in enumerate(ms_ssim(as_tensor(image), as_tensor(copy)).tolist()):
        a, b = image[i, ..., 0].astype(float), copy[i, ..., 0].astype(float)
        _, fine = parts(a, b)
        luminance, coarse = parts(halved(a), halved(b))
        first = 0.0448 / (0.0448 + 0.2856)
        assert value == pytest.approx(fine.mean() ** first * (luminance * coarse).mean() ** (1 - first), rel=1e-6)


def test_ms_ssim_of_one_scale_is_ssim_and_identity_is_one():
    image, copy = as_tensor(pictures(size=16)), as_tensor(blurred(pictures(size=16), 1.0))
    assert torch.allclose(ms_ssim(image, copy), ssim(image, copy))
    assert torch.allclose(ms_ssim(image, image), torch.ones(4, dtype=torch.float64))


def test_sharpness_falls_with_blur_and_rises_with_noise():
    images = pictures()
    values = [sharpness(images, copy).mean() for copy in (blurred(images, 2), blurred(images, 1), images)]
    assert values[0] < values[1] < values[2] == pytest.approx(1)
    noise = np.random.default_rng(1).normal(0, 20, images.shape)
    assert (sharpness(images, np.clip(images + noise, 0, 255).astype(np.uint8)) > 1).all()


def test_envelope_error_is_the_shift_in_bins():
    signal = heights(pictures()[[0, 3]], [0])  # ridges that stay inside the axis
    assert envelope_error(signal, signal).tolist() == [0, 0]
    for bins in (1, 3):
        moved = shift(signal, (0, bins, 0), order=0)
        assert envelope_error(signal, moved) == pytest.approx([bins] * 2, abs=0.1)
    assert (envelope_error(signal, np.zeros_like(signal)) > 3).all()
    assert envelope_error(np.zeros_like(signal), signal).tolist() == [0, 0]


def test_heights_of_a_coloured_picture_are_its_levels():
    images = pictures()
    coloured = np.stack([paint(image, "jet-256") for image in images])
    assert np.array_equal(heights(coloured, [0, 0, 131]), heights(images, [0]))


def test_every_measure_prefers_the_better_copy():
    images = pictures()
    near, far = (measure(images, blurred(images, sigma), [0], None) for sigma in (0.7, 3.0))
    assert set(near) == set(MEASURES) - {"lpips", "level_psnr"}
    for name in ("psnr", "ssim", "ms_ssim", "sharpness"):
        assert near[name].mean() > far[name].mean()
    assert near["envelope"].mean() < far["envelope"].mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_familiar_changes_are_losses_of_detail(channels):
    image = np.repeat(pictures(1)[0], channels, axis=-1)
    errors = [np.abs(FAMILIAR[row](image).astype(int) - image).mean() for row in ("half size", "quarter size")]
    assert 0 < errors[0] < errors[1]
    assert smaller(image, 1).tolist() == image.tolist()
    assert FAMILIAR["JPEG 75"](image).shape == image.shape


@pytest.fixture
def vqvae(tmp_path):
    packed = toy_packed(tmp_path / "packed", size=32, val=8)
    torch.manual_seed(0)
    model = build_vqvae(image_channels=1, latent_channels=4, num_codes=16, n_layers=1, base_channels=8).eval()
    made_from = {"images": provenance.read(packed, "images")["hash"]}
    save_vqvae(model, tmp_path / "vqvae" / "best", image_shape=[32, 32, 1], made_from=made_from, config={}, floor=[0])
    return tmp_path / "vqvae"


def test_command_writes_figures_table_and_strip(vqvae, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))
    reconstruct(ReconstructConfig(vqvae, tmp_path / "packed", batch_size=3, preset="tiny"))
    figures = json.loads((vqvae / "reconstruction" / "reconstruction.json").read_text())
    assert (figures["count"], figures["split"], figures["same_images_as_training"]) == (8, "val", True)
    assert set(figures["rows"]) == {"VQ-VAE", "JPEG 75", "half size", "quarter size"}
    assert list(figures["classes"]) == ["flat", "rising", "falling", "wavy"]
    for entry in (*figures["rows"].values(), *figures["classes"].values()):
        assert entry["psnr"]["worst"] <= entry["psnr"]["mean"]
        assert entry["envelope"]["worst"] >= entry["envelope"]["mean"]
    assert figures["rows"]["VQ-VAE"]["psnr"]["mean"] < figures["rows"]["half size"]["psnr"]["mean"]  # it is untrained
    assert 0 < figures["codes"]["used"] <= 1 <= figures["codes"]["perplexity"] <= 16
    assert len(figures["latents"]["std"]) == 4
    assert figures["latents"]["scaled_std"] == pytest.approx([1] * 4, abs=0.5)  # of training images of the same kinds
    assert [row["reached"] for row in figures["goals"][:1]] == [False]
    assert "lpips" not in figures["rows"]["VQ-VAE"]
    printed = capsys.readouterr().out
    assert "LPIPS is not measured" in printed
    assert "to reach (tiny)" in printed
    assert (vqvae / "reconstruction" / "reconstruction.txt").read_text() in printed
    assert Image.open(vqvae / "reconstruction" / "reconstruction.png").size[0] > 3 * 128


def test_levels_of_a_colour_map_are_measured_in_its_colours_and_as_levels(vqvae, tmp_path, monkeypatch):
    """And `mdaug evaluate reconstruction` finds the figures of `mdaug reconstruct`."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))
    grey = measured_val(vqvae, tmp_path / "packed", tmp_path / "grey")
    assert "level_psnr" not in grey["rows"]["VQ-VAE"]
    index = tmp_path / "packed" / "val" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"colormap": "jet-256"}, indent=1))
    coloured = measured_val(vqvae, tmp_path / "packed", tmp_path / "coloured")
    assert coloured["rows"]["VQ-VAE"]["level_psnr"] == grey["rows"]["VQ-VAE"]["psnr"]
    assert coloured["rows"]["VQ-VAE"]["psnr"] != grey["rows"]["VQ-VAE"]["psnr"]
    assert "level_psnr [dB]" in (tmp_path / "coloured" / "reconstruction.txt").read_text()
    synthetic = toy_synthetic(tmp_path / "synthetic", tmp_path / "packed")
    config = EvaluateConfig(
        tmp_path / "packed", synthetic, tmp_path / "out", vqvae, part="reconstruction", image_size=32, batch_size=3
    )
    figures = evaluate(config)["reconstruction"]
    assert figures["rows"]["VQ-VAE"] == coloured["rows"]["VQ-VAE"]
    assert figures["classes"] == coloured["classes"]
    assert "<th>PSNR of levels dB</th>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def measured_val(vqvae: Path, packed: Path, output: Path) -> dict:
    reconstruct(ReconstructConfig(vqvae, packed, output_dir=output, batch_size=3))
    return json.loads((output / "reconstruction.json").read_text())


def test_images_of_another_size_are_refused(vqvae, tmp_path):
    other = toy_packed(tmp_path / "other", size=16)
    with pytest.raises(UserError, match="16x16, but image_size is 32"):
        reconstruct(ReconstructConfig(vqvae, other))
    with pytest.raises(UserError, match="no images in test"):
        reconstruct(ReconstructConfig(vqvae, tmp_path / "packed", split="test"))


def measured(psnr=28.0, used=0.9, perplexity=128 / 3, sharpness=0.9, std=1.02) -> dict:
    return {
        "rows": {"VQ-VAE": {"psnr": {"mean": psnr}, "sharpness": {"mean": sharpness}}},
        "codes": {"number": 128, "used": used, "perplexity": perplexity},
        "latents": {"scaled_std": [1.0, std, 1.01], "excess_kurtosis": [0.1, -0.7, 0.3]},
    }


def test_the_limits_of_the_goals_are_reached():
    rows = goals(measured())
    assert [row["reached"] for row in rows] == [True, True, True, True, True, None]
    assert rows[-1]["measured"] == -0.7


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("psnr", 27.9, "PSNR [dB]"),
        ("used", 0.89, "codes used"),
        ("perplexity", 42.6, "perplexity"),
        ("sharpness", 0.89, "sharpness"),
        ("sharpness", 1.11, "sharpness"),
        ("std", 1.021, "latent std after scaling"),
        ("std", 0.97, "latent std after scaling"),
    ],
)
def test_one_missed_figure_is_the_only_no(field, value, name):
    rows = goals(measured(**{field: value}))
    assert [row["figure"] for row in rows if row["reached"] is False] == [name]
    line = next(line for line in format_goals(rows, "demo").splitlines() if line.startswith(name))
    assert line.endswith("no")


def test_the_table_of_goals_names_the_preset():
    assert format_goals(goals(measured()), "gpu-6gb").startswith("to reach (gpu-6gb)")
