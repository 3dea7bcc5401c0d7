"""An image folder given where packed shards are wanted is packed into a cache beside it, once."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from shards import provenance
from shards.errors import UserError
from shards.packed import open_packed
from shards.verify import verify

from .shards_helpers import numbered_folder, packed_set, png


@pytest.fixture
def source(tmp_path) -> Path:
    return numbered_folder(tmp_path / "images", {"ID_10": list(range(30)), "ID_2": list(range(1, 25))})


def test_open_packed_takes_packed_images_of_the_right_size_only(tmp_path, source):
    packed_set(source, tmp_path / "out")
    assert open_packed(tmp_path / "out", 8) == tmp_path / "out"
    with pytest.raises(UserError, match="8x8, but image_size is 16; give --image_size 8 or pack"):
        open_packed(tmp_path / "out", 16)
    with pytest.raises(UserError, match="8x8, but image_size is 8x16; give --image_size 8 or pack"):
        open_packed(tmp_path / "out", "8x16")


def test_open_packed_caches_an_image_folder_until_a_file_changes(tmp_path, source):
    first = open_packed(source, 8, workers=1)
    assert first.parent == tmp_path / ".mdaug-cache"
    (source / "run.json").write_text(json.dumps({"format": 1, "command": "simulate", "made_from": {}, "identity": {}}))
    provenance.write(source, kind="image-folder", content_hash="h", made_from={}, config={})  # still an image folder
    written = (first / "train" / "000000.tar").stat().st_mtime_ns
    assert open_packed(source, 8, workers=1) == first
    assert (first / "train" / "000000.tar").stat().st_mtime_ns == written
    assert open_packed(source, 4, workers=1) != first
    (source / "ID_2" / "ID_2_77.png").write_bytes(png(77))
    assert open_packed(source, 8, workers=1) != first


def open_and_report(source: Path, results) -> None:
    results.put((str(open_packed(source, 8, workers=1)), os.getpid()))


def test_ranks_that_open_at_once_get_one_whole_folder(tmp_path, source):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=open_and_report, args=(source, results)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    folders = {results.get(timeout=60)[0] for _ in ranks}
    for rank in ranks:
        rank.join(timeout=60)
    assert len(folders) == 1
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert verify(Path(folders.pop())) == []
