"""The mapped table of samples: what it holds, who writes it when, and what opening a large set costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shards import mapped, samples
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import index_hash, read_index, write_index
from shards.writer import finished, write_shard

from .shards_helpers import png, shard_folder
from .shards_helpers import samples as some


def table(folder: Path) -> Path:
    (path,) = folder.glob("samples-*.npy")
    return path


def test_the_table_holds_labels_and_places_and_keys_come_from_the_tars(tmp_path):
    folder = shard_folder(tmp_path)
    dataset = ShardDataset(folder, ("image", "array", "meta"))
    records = [finished(path) for path in sorted(folder.glob("*.tar"))]
    assert dataset.labels.tolist() == [label for record in records for label in record["labels"]]
    assert dataset.keys == [key for record in records for key in record["keys"]]
    assert [dataset.key(i) for i in (9, 0, 5)] == [dataset.keys[i] for i in (9, 0, 5)]
    content = (folder / "000002.tar").read_bytes()
    for i, (start, size) in enumerate(records[2]["members"]["npy"], 6):
        assert dataset.raw(i, "array") == content[start : start + size]


def test_a_folder_of_an_older_version_gets_its_table_when_it_is_first_opened(tmp_path):
    folder = shard_folder(tmp_path)
    written = table(folder).read_bytes()
    table(folder).unlink()
    dataset = ShardDataset(folder, ("array",))
    assert table(folder).read_bytes() == written
    assert [sample["key"] for sample in (dataset[i] for i in range(len(dataset)))] == dataset.keys


def test_where_nothing_can_be_written_the_table_is_kept_in_memory(tmp_path, monkeypatch):
    folder = shard_folder(tmp_path)
    expected = ShardDataset(folder, ("array",))[7]
    table(folder).unlink()

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mapped.atomic, "locked", refused)
    found = ShardDataset(folder, ("array",))[7]
    assert (found["key"], found["label"]) == (expected["key"], expected["label"])
    assert np.array_equal(found["array"], expected["array"])
    assert not list(folder.glob("samples-*.npy"))


def test_the_table_of_another_content_is_not_taken_and_goes(tmp_path):
    folder = shard_folder(tmp_path)
    old = table(folder)
    write_shard(folder / "000001.tar", some(90, 3))
    write_index(folder, ["a", "b"])
    assert table(folder) != old
    assert len(ShardDataset(folder)) == 12


def test_a_damaged_table_is_one_line(tmp_path):
    folder = shard_folder(tmp_path)
    table(folder).write_bytes(table(folder).read_bytes()[:-3])
    with pytest.raises(UserError, match=r"samples-\w+\.npy is cut or damaged; delete it"):
        ShardDataset(folder)


def test_a_field_that_a_later_shard_lacks_is_refused_by_its_name(tmp_path):
    folder = shard_folder(tmp_path, (2, 2))
    write_shard(folder / "000001.tar", [("k", {"cls": b"0", "png": png(0)})])
    write_index(folder, ["a", "b"])
    assert len(ShardDataset(folder, ("image",))) == 3
    with pytest.raises(UserError, match=r"000001\.tar holds cls, png, but 'array' is needed"):
        ShardDataset(folder, ("array",))


def test_many_sidecars_are_read_by_all_cores_and_give_the_same_table(tmp_path, monkeypatch):
    folder = shard_folder(tmp_path, (3, 1, 2, 5))
    alone = table(folder).read_bytes()
    monkeypatch.setattr(samples, "SHARDS_PER_PROCESS", 2)
    monkeypatch.setattr("shards.pool.cores", lambda: 2)
    samples.write(folder, read_index(folder))
    assert table(folder).read_bytes() == alone


def private_bytes() -> int:
    """Memory of this process that is not that of mapped files."""
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


def test_ten_million_samples_are_opened_without_an_object_for_each(tmp_path):
    shards, size = 2000, 5000
    names = [f"{shard:06d}" for shard in range(shards)]
    for name in names:  # nothing reads their content here
        (tmp_path / f"{name}.tar").write_bytes(bytes(1024))
        (tmp_path / f"{name}.json").touch()
    shardlist = [{"url": f"{n}.tar", "nsamples": size, "filesize": 1024, "sha256": n * 11} for n in names]
    index = {"shardlist": shardlist, "nsamples": shards * size, "classes": ["a", "b"]}
    index["hash"] = index_hash(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    dtype = np.dtype([("label", "<u2"), ("array", "<u4")])
    rows = np.lib.format.open_memmap(tmp_path / samples.file_name(index), "w+", dtype, (shards * size,))
    rows["label"], rows["array"] = 1, 1
    del rows
    before = private_bytes()
    dataset = ShardDataset(tmp_path, ("array",))
    assert len(dataset) == 10**7
    assert dataset.labels[-1] == 1
    assert private_bytes() - before < 20e6
    assert table(tmp_path).stat().st_size < 6 * 10**7 + 1000
