"""The texture of spectrograms in figures that can be counted by hand, and what a classifier can tell apart."""

import numpy as np
import pytest

from mdaug.measures import realism
from mdaug.radar.options import SimulateConfig
from mdaug.radar.simulate import run as simulate
from shards.options import PackConfig
from shards.pack import run as pack

MEASURED = {
    "floor_share": 0.59, "level_mean": 98, "level_p90": 173, "rows_mean": 26.2, "rows_spread": 8.3,
    "step_doppler": 18.8, "step_time": 19.1, "filled_share": 0.90, "ridge_spread": 1.45, "period": 16, "rhythm": 0.60,
    "fine_doppler": 0.046, "fine_time": 0.061,
}  # fmt: skip
"""Of 1,595 windows of measured gait of ten people (77 GHz, 3 s, +-5 m/s), packed at 64 x 64 levels."""


def band(width: np.ndarray, level: int = 100) -> np.ndarray:
    """Return levels (64, 64) of a band of so many rows in each column, from row 10 down."""
    rows = np.arange(64)[:, None]
    return np.where((rows >= 10) & (rows < 10 + width), level, 0).astype(np.uint8)


def test_statistics_of_a_plain_band():
    found = realism.statistics(band(np.full(64, 16))[None])
    assert found["floor_share"] == pytest.approx(0.75)
    assert (found["level_mean"], found["level_p90"]) == (100, 100)
    assert (found["rows_mean"], found["rows_spread"]) == (16, 0)
    assert found["step_doppler"] == pytest.approx(2 * 50 / 16)  # the two edges, half of the step each
    assert found["step_time"] == 0
    assert found["filled_share"] == 1
    assert found["ridge_spread"] == 0
    assert np.isnan(found["period"])
    assert found["fine_time"] == pytest.approx(0, abs=1e-9)


def test_holes_and_rhythm():
    width = np.round(20 + 8 * np.sin(2 * np.pi * np.arange(64) / 16)).astype(int)
    picture = band(width)
    picture[12] = 0
    found = realism.statistics(picture[None])
    assert found["filled_share"] == pytest.approx(np.mean((width - 1) / width))
    assert found["period"] == 16
    assert found["rhythm"] == pytest.approx(0.75, abs=0.03)  # of the biased estimate: 48 of 64 columns overlap
    assert found["rows_spread"] == pytest.approx(8 / np.sqrt(2), rel=0.03)


def test_white_noise_has_three_quarters_of_its_power_above_a_quarter_of_nyquist():
    levels = np.random.default_rng(0).integers(0, 256, (20, 64, 64)).astype(np.uint8)
    found = realism.statistics(levels)
    assert found["fine_doppler"] == pytest.approx(47 / 64, abs=0.01)
    assert found["fine_time"] == pytest.approx(47 / 64, abs=0.01)


def test_silence_has_no_texture():
    found = realism.statistics(np.zeros((2, 64, 64), np.uint8))
    assert found.keys() == realism.STATISTICS.keys()
    assert all(np.isnan(value) for value in found.values())


def noise(seed: int, brightest: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, brightest, (60, 64, 64)).astype(np.uint8)


@pytest.mark.slow
def test_a_classifier_tells_apart_what_differs_and_nothing_else():
    groups = [str(i // 5) for i in range(60)]
    same = realism.compare(noise(0), noise(1), groups, groups, steps=80)
    other = realism.compare(noise(0), noise(1, brightest=160), groups, groups, steps=80)
    assert same["windows"] == 60
    assert same["accuracy"] < 0.75
    assert other["accuracy"] > 0.95
    assert other["frechet"] > 10 * same["frechet"]
    assert realism.compare(noise(0), noise(1), groups, ["one"] * 60)["accuracy"] is None


@pytest.mark.slow
def test_simulated_gait_has_the_texture_of_measured_gait(tmp_path):
    """Within 20 % here, of few people; docs/physics.md has the figures of 40."""
    simulate(SimulateConfig(tmp_path / "set", preset="gait-persons", num_persons=12, images_per_class=24, workers=1))
    pack(PackConfig(tmp_path / "set", tmp_path / "packed", image_size=64, image_mode="gray", workers=1))
    levels, groups = realism.read(tmp_path / "packed/train")
    assert len(levels) == len(groups) > 150
    found = realism.statistics(levels)
    assert found == pytest.approx(MEASURED, rel=0.2)
