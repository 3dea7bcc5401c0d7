"""Packing of measured images, where they lie beside the checkout: they are not part of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shards.dataset import ShardDataset
from shards.options import PackConfig
from shards.pack import run as pack

GESTURES = Path(__file__).parents[3] / "shared" / "data" / "acconeer_gesture"
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
