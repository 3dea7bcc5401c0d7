"""What the kinematic measures and the search for copies find in pictures whose truth is known."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mdaug.evaluation.report.pictures import pairs
from mdaug.measures import kinematics, memorization
from mdaug.radar.options import SimulateConfig
from mdaug.radar.simulate import run as simulate

AXES = kinematics.Axes(speed=4.0, duration=2.0, clip_db=40.0, physical=True)


def ridge(torso: float, reach: float, cycles: float, size: int = 64) -> np.ndarray:
    """Return levels of a steady line at velocity `torso` and a weaker one that swings by `reach` above it."""
    velocity = AXES.speed * (1 - (2 * np.arange(size)[:, None] + 1) / size)
    time = (np.arange(size) + 0.5) / size
    swing = torso + reach * (0.5 - 0.5 * np.cos(2 * np.pi * cycles * time))
    lines = [250 * np.exp(-(((velocity - torso) / 0.2) ** 2)), 190 * np.exp(-(((velocity - swing) / 0.15) ** 2))]
    return np.maximum(*np.broadcast_arrays(*lines)).astype(np.uint8)


def test_measures_of_a_drawn_motion():
    values = kinematics.measure(np.stack([ridge(1.0, 2.0, 5), ridge(1.0, 2.0, 5)[::-1]]), AXES)
    assert values["torso"] == pytest.approx([1.0, -1.0], abs=0.1)
    assert values["cadence"] == pytest.approx([2.5, 2.5], abs=0.1)  # 5 cycles in 2 s
    assert values["upper"][0] > 1.5
    assert values["lower"][1] < -1.5
    assert values["upper"][0] == pytest.approx(-values["lower"][1], abs=1e-9)
    assert values["symmetry"] == pytest.approx([1.0, -1.0], abs=0.05)
    assert values["bandwidth"][0] == pytest.approx(values["bandwidth"][1])


def test_envelope_is_where_the_cumulative_power_passes_97_percent():
    levels = np.zeros((100, 8), dtype=np.uint8)
    levels[20:80] = 255  # 60 rows of equal power
    _, upper, lower = kinematics.envelopes(levels, AXES)
    step = 8.0 / 100
    top = AXES.speed - 20 * step
    assert upper == pytest.approx(np.full(8, top - 0.03 * 60 * step))
    assert lower == pytest.approx(-upper)


def test_noise_over_the_whole_band_does_not_move_the_envelopes():
    rng = np.random.default_rng(0)
    clean = ridge(1.0, 1.5, 4)
    noisy = np.maximum(clean, rng.normal(40, 10, clean.shape).clip(0, 255)).astype(np.uint8)
    first, second = (kinematics.measure(levels[None], AXES) for levels in (clean, noisy))
    for name in ("torso", "upper", "lower", "cadence"):
        assert second[name] == pytest.approx(first[name], abs=0.15)


def test_an_empty_picture_and_one_without_a_rhythm_have_no_such_measure():
    empty = kinematics.measure(np.zeros((1, 64, 64), dtype=np.uint8), AXES)
    assert all(np.isnan(values).all() for values in empty.values())
    steady = kinematics.measure(ridge(1.0, 0.0, 0)[None], AXES)
    assert np.isnan(steady["cadence"]).all()
    assert not np.isnan(steady["torso"]).any()


def test_distances_of_distributions_are_those_of_a_shift():
    rng = np.random.default_rng(0)
    real = {"torso": rng.standard_normal(300)}
    moved = {"torso": real["torso"] + 0.5}
    labels = np.zeros(300, dtype=int)
    row = kinematics.compare(real, labels, moved, labels, 2)
    assert row[0]["torso"]["wasserstein"] == pytest.approx(0.5)
    assert row[0]["torso"]["p"] < 1e-4
    assert row[1]["torso"] is None  # no images of that class
    same = kinematics.compare(real, labels, real, labels, 1)[0]["torso"]
    assert (same["wasserstein"], same["ks"]) == (0, 0)


def test_axes_have_units_only_where_all_metadata_agree():
    row = {"v_max_m_s": "6.0", "duration_s": "3.0", "window_s": "0.05", "clip_db": "45.0"}
    axes = kinematics.Axes.of([row, row])
    assert (axes.speed, axes.clip_db, axes.physical) == (6.0, 45.0, True)
    assert axes.duration == pytest.approx(2.95)
    assert axes.units["torso"] == "m/s"
    assert not kinematics.Axes.of([row, row | {"v_max_m_s": "5.0"}]).physical
    assert kinematics.Axes.of([{}]).units["torso"] == "of the axis"


def test_simulated_walkers_are_measured_as_they_walk(tmp_path):
    config = SimulateConfig(
        tmp_path / "sim", image_size=128, classes=["walking", "drone"], images_per_class=12, image_mode="gray"
    )
    simulate(config)
    with open(tmp_path / "sim" / "metadata.csv", encoding="utf-8") as file:
        meta = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    levels = np.stack([np.asarray(Image.open(tmp_path / "sim" / row["file"])) for row in meta])
    labels = np.array([["walking", "drone"].index(row["class"]) for row in meta])
    values = kinematics.measure(levels, kinematics.Axes.of(meta))
    rows = {(row["class"], row["measure"]): row for row in kinematics.estimator_error(values, meta, labels)}
    assert set(rows) == {(0, "torso"), (0, "cadence"), (1, "torso")}
    assert rows[0, "cadence"]["found"] > 0.9
    assert rows[0, "cadence"]["error"] < 0.03 * rows[0, "cadence"]["truth"]
    assert rows[0, "torso"]["error"] < 0.12 * rows[0, "torso"]["truth"]
    assert rows[1, "torso"]["error"] < 0.15
    assert kinematics.estimator_error(values, [{} for _ in meta], labels) == []


def compared(train, held_out, synthetic, **options):
    """Compare sets of one class."""
    labels = [np.zeros(len(images), dtype=int) for images in (held_out, synthetic)]
    return memorization.compare(train, held_out, labels[0], synthetic, labels[1], **options)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (60, 32, 32), dtype=np.uint8)


def test_memorization_finds_exactly_the_copies(pictures):
    train, held_out, new = pictures[:30], pictures[30:50], pictures[50:]
    table = compared(train, held_out, np.concatenate([new, train[[7, 3, 11]]]), pairs=3)
    assert (table["synthetic_copies"], table["held_out_copies"]) == (3, 0)
    assert table["copies_share"] == pytest.approx(3 / 13)
    assert sorted(table["pairs"]) == [[10, 7], [11, 3], [12, 11]]
    assert table["shifts"] == [0, 0, 0]
    assert compared(train, held_out, new)["synthetic_copies"] == 0


def test_copies_shifted_in_time_are_found_with_their_shift_and_copies_shifted_in_doppler_are_none(pictures):
    train, held_out = pictures[:30], pictures[30:50]
    in_time = np.stack([np.roll(train[i], 3 * i, axis=1) for i in range(10)])
    table = compared(train, held_out, in_time)
    assert table["synthetic_copies"] == 10
    assert sorted(table["pairs"]) == [[i, i] for i in range(10)]
    found = {pair[0]: shift for pair, shift in zip(table["pairs"], table["shifts"], strict=True)}
    assert [found[i] for i in range(10)] == pytest.approx([(3 * i % 32) / 32 for i in range(10)])
    in_doppler = np.stack([np.roll(train[i], 8, axis=0) for i in range(10)])
    assert compared(train, held_out, in_doppler)["synthetic_copies"] == 0


def test_nearest_distance_is_the_rms_in_levels_and_agrees_with_a_search_over_all_shifts(pictures):
    flat = np.full((1, 16, 16), 100, dtype=np.uint8)
    assert memorization.nearest(flat + np.uint8(8), flat)[0] == pytest.approx([8.0])
    queries, references = pictures[:4], pictures[4:9]
    distance, index, shift = memorization.nearest(queries, references)
    a, b = memorization.bands(queries), memorization.bands(references)
    for i in range(4):
        every = np.array([[np.sqrt(((a[i] - np.roll(y, s, axis=1)) ** 2).mean()) for s in range(32)] for y in b])
        assert distance[i] == pytest.approx(every.min())
        assert every[index[i], round(shift[i] * 32)] == pytest.approx(every.min())


def test_nearest_pairs_are_drawn_as_they_match(pictures):
    def as_set(levels):
        return SimpleNamespace(picture=lambda i: levels[i][..., None])

    copy = np.roll(pictures[0], 8, axis=1)[None]
    drawn = pairs(as_set(copy), as_set(pictures), {"pairs": [[0, 0]], "shifts": [0.25], "distances": [0.0]})
    tiles = drawn[24 : 24 + 128, -2 * 132 :]
    assert np.array_equal(tiles[:, :128], tiles[:, 132:260])
