"""Packing and reading of measured data, where they lie beside the checkout: they are not part of it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdaug.radar.recording import Radar
from mdaug.radar.recordings import read
from mdaug.radar.stft import Chain, Transform, brightness
from shards.dataset import ShardDataset
from shards.options import PackConfig
from shards.pack import run as pack

from .radar_helpers import velocity_over_time

GESTURES = Path(__file__).parents[3] / "shared" / "data" / "acconeer_gesture"
RAW = GESTURES.with_name("acconeer_gesture_raw")
FRAMES = 96  # of one of the images
EVERY = 4  # of the images: the test is to take seconds


@pytest.fixture
def gestures(tmp_path) -> Path:
    """Links to every fourth image of each recording."""
    if not GESTURES.is_dir():
        pytest.skip(f"no measured gestures at {GESTURES}")
    for path in sorted(GESTURES.glob("*/*.png"))[::EVERY]:
        link = tmp_path / "images" / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return tmp_path / "images"


def test_every_file_is_accounted_for_and_no_recording_is_on_both_sides(gestures, tmp_path):
    pack(PackConfig(gestures, tmp_path / "packed", image_size=16, group_by=r"_(r\d+)_", workers=1))
    files = {str(path.relative_to(gestures)) for path in gestures.glob("*/*")}
    sources = {}
    for side in ("train", "val"):
        dataset = ShardDataset(tmp_path / "packed" / side, ("meta",))
        sources[side] = {dataset[i]["meta"]["source"] for i in range(len(dataset))}
        assert len(sources[side]) == len(dataset) > 0
    report = json.loads((tmp_path / "packed" / "report.json").read_text(encoding="utf-8"))
    rejected = {entry["file"] for entry in report["rejected"]}
    assert report["found"] == report["packed"] + len(rejected) == len(files) > 100
    assert sources["train"] | sources["val"] | rejected == files
    train, val = ({re.search(r"_(r\d+)_", path)[1] for path in sources[side]} for side in ("train", "val"))
    assert train.isdisjoint(val)


@pytest.mark.parametrize("gesture", ["tap_in", "tap_out", "double_tap_in", "wiggle"])
def test_raw_recordings_give_the_pictures_that_were_made_of_them(gesture):
    """To two of 256 levels, upside down (they have approaching hands at the bottom), with one number fitted.

    PROVENANCE.md of the images names the chain but for the noise floor of each recording, above which they show 40 dB.
    """
    name = f"label_{gesture}_idx_2.h5"
    if not (RAW / name).is_file() or not GESTURES.is_dir():
        pytest.skip(f"no measured recording at {RAW / name}")
    recording = read(RAW / name, Radar())
    v_max = recording.prf_hz * recording.wavelength_m / 4
    assert v_max == pytest.approx(1.24, abs=0.005)
    amplitudes = velocity_over_time(recording, Chain(v_max))
    with open(GESTURES / "segments.csv", newline="", encoding="utf-8") as file:
        bursts = [row for row in csv.DictReader(file) if row["recording"] == f"{gesture}_idx_2"]
    pairs = []
    for burst in bursts:
        path = GESTURES / gesture / f"{gesture}_r2_e{int(burst['event']):03d}.png"
        first = int(burst["centre_frame"]) - FRAMES // 2
        if burst["status"] == "ok" and first >= 0 and first + FRAMES <= amplitudes.shape[1]:
            pairs.append((np.asarray(Image.open(path)).astype(float)[::-1], amplitudes[:, first : first + FRAMES]))
    assert len(pairs) > 10

    def levels(part: np.ndarray, floor: float) -> np.ndarray:
        bright = Image.fromarray(brightness(part, 40, floor * 10 ** (40 / 20)))
        # Of 128 bins the lowest of the images is -500 Hz and has no mirror: one row of each is without a partner.
        return np.round(np.asarray(bright.resize((128, 128), Image.Resampling.BILINEAR)) * 255)[:-1]

    # The floor is where the levels in the middle of the range agree on average; the second round starts close to it.
    floor = float(np.median(amplitudes))
    for _ in range(2):
        inside = [(there[1:] > 20) & (there[1:] < 235) for there, _ in pairs]
        above = [
            (levels(part, floor) - there[1:])[mask].mean() for (there, part), mask in zip(pairs, inside, strict=True)
        ]
        floor *= 10 ** (np.mean(above) * 40 / 255 / 20)
    for there, part in pairs:
        difference = np.abs(levels(part, floor) - there[1:])
        assert difference.max() <= 2
        assert difference.mean() < 0.3


def test_hands_that_come_nearer_are_in_the_upper_half():
    """Velocity and the change of the echo's mean range agree: measured orientation, not assumed."""
    if not RAW.is_dir():
        pytest.skip(f"no measured recordings at {RAW}")
    for path in sorted(RAW.glob("*.h5")):
        recording = read(path, Radar())
        transform = Transform(recording, Chain(recording.prf_hz * recording.wavelength_m / 4))
        power = np.square(np.concatenate(list(transform), axis=1))
        velocity = np.linspace(1, -1, len(power)) @ power / power.sum(axis=0)
        samples = recording.block(0, recording.units)[:, 0]
        energy = np.square(np.abs(samples - samples.mean(axis=-1, keepdims=True))).sum(axis=-1)
        nearer = -np.gradient(energy @ np.arange(energy.shape[1]) / energy.sum(axis=1))
        strong = power.sum(axis=0) > np.quantile(power.sum(axis=0), 0.9)
        assert np.corrcoef(velocity[strong], nearer[strong])[0, 1] > 0.4
