"""Packed folders behind a URL: fetched once, whole or not at all, and told apart by their full URL."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.options import PackConfig
from shards.pack import run as pack
from shards.packed import open_packed
from shards.remote import fetch, url_of
from shards.verify import verify

from .shards_helpers import contents, numbered_folder

MEMORY = fsspec.filesystem("memory")


@pytest.fixture
def packed(tmp_path) -> Path:
    source = numbered_folder(tmp_path / "images", {"a": list(range(40)), "b": list(range(40))})
    pack(PackConfig(source, tmp_path / "packed", shard_size=16, workers=1))
    return tmp_path / "packed"


def upload(folder: Path) -> str:
    url = f"memory://{uuid.uuid4().hex}/data"
    for path in folder.rglob("*"):
        if path.is_file():
            MEMORY.pipe(f"{url}/{path.relative_to(folder)}", path.read_bytes())
    return url


def test_a_remote_folder_reads_as_the_local_one(tmp_path, packed):
    url = upload(packed)
    local = open_packed(Path(url), 8, cache_dir=tmp_path / "cache")  # a Path has one slash less
    assert contents(local) == contents(packed)
    assert verify(local) == []
    assert ShardDataset(local / "val").hash == ShardDataset(packed / "val").hash


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(tmp_path, packed):
    url = upload(packed)
    local = fetch(url, tmp_path / "cache")
    times = {path: path.stat().st_mtime_ns for path in local.rglob("*.tar")}
    damaged = local / "train" / "000000.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert fetch(url, tmp_path / "cache") == local
    assert verify(local) == []
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {damaged}


def test_folders_of_the_same_name_elsewhere_have_their_own_copy(tmp_path, packed):
    first, second = (fetch(upload(packed), tmp_path / "cache") for _ in range(2))
    assert first != second


def test_wrong_or_missing_remote_files_are_refused_and_leave_no_shard(tmp_path, packed):
    url = upload(packed)
    name = "train/000001.tar"
    MEMORY.pipe(f"{url}/{name}", MEMORY.cat(f"{url}/{name}")[:-1] + b"x")
    with pytest.raises(UserError, match=r"train/000001\.tar is not what the index there names"):
        fetch(url, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("000001.*"))
    assert not list((tmp_path / "cache").rglob("provenance.json"))
    MEMORY.rm(f"{url}/{name}")
    with pytest.raises(UserError, match="in the index but not there"):
        fetch(url, tmp_path / "cache")
    MEMORY.rm(f"{url}/provenance.json")
    with pytest.raises(UserError, match=r"no provenance\.json there"):
        fetch(url, tmp_path / "cache")


def test_commands_and_paths_out_of_the_folder_are_refused(tmp_path, packed):
    with pytest.raises(UserError, match="cannot be opened"):
        fetch("pipe://cat /etc/passwd", tmp_path / "cache")
    url = upload(packed)
    index = MEMORY.cat(f"{url}/train/index.json").replace(b"000000.tar", b"../../x.tar")
    MEMORY.pipe(f"{url}/train/index.json", index)
    with pytest.raises(UserError, match="not a plain file name"):
        fetch(url, tmp_path / "cache")


@pytest.mark.parametrize(
    ("path", "url"),
    [("s3://b/x", "s3://b/x"), (Path("s3://b/x"), "s3://b/x"), ("/data/x", None), ("data/x", None), ("a:b", None)],
)
def test_urls_are_told_from_paths(path, url):
    assert url_of(path) == url
