"""The table of what a VQ-VAE is to reach."""

from __future__ import annotations

import pytest

from mdaug.evaluation.reconstruct import format_targets, targets


def figures(psnr=28.0, used=0.9, perplexity=128 / 3, sharpness=0.9, std=1.02) -> dict:
    return {
        "rows": {"VQ-VAE": {"psnr": {"mean": psnr}, "sharpness": {"mean": sharpness}}},
        "codes": {"number": 128, "used": used, "perplexity": perplexity},
        "latents": {"scaled_std": [1.0, std, 1.01], "excess_kurtosis": [0.1, -0.7, 0.3]},
    }


def test_limits_themselves_are_reached():
    rows = targets(figures())
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
    rows = targets(figures(**{field: value}))
    assert [row["figure"] for row in rows if row["reached"] is False] == [name]
    line = next(line for line in format_targets(rows, "demo").splitlines() if line.startswith(name))
    assert line.endswith("no")


def test_the_table_names_the_preset():
    assert format_targets(targets(figures()), "gpu-6gb").startswith("to reach (gpu-6gb)")
