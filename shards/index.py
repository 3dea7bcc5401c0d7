"""index.json: the list of the shards of one folder, compatible with wids, and the hash that names their content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from shards import samples
from shards.atomic import remove_debris, write_text
from shards.errors import UserError
from shards.pool import Pool
from shards.writer import finished

FILE_NAME = "index.json"
SPLITS = ("train", "val", "test")


def write_index(folder: Path, classes: list[str], **extra) -> dict:
    """Write `index.json` from the sidecars of all finished shards in `folder`, and return it.

    The result depends on the shards, `classes` and `extra` (such as image_shape=[H, W, C]) alone.
    A shard without sidecar does not exist and is not listed.

    Raises:
        UserError: a tar is not as long as its sidecar says.
    """
    paths = sorted(folder.glob("*.tar"))
    with Pool(jobs=1 + len(paths) // samples.SHARDS_PER_PROCESS) as pool:
        shardlist = [entry for entry in pool.map(_entry, paths, chunk=64) if entry is not None]
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": shardlist,
        "nsamples": sum(shard["nsamples"] for shard in shardlist),
        "classes": classes,
        **extra,
    }
    index["hash"] = index_hash(index)
    samples.write(folder, index)
    remove_debris(folder)  # of shards whose writers were killed while another one wrote the same
    write_text(folder / FILE_NAME, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    return index


def _entry(path: Path) -> dict | None:
    """Return what the index lists of a shard; None for a tar without sidecar."""
    record = finished(path)
    if record is not None:
        names = {"nsamples": "count", "filesize": "bytes", "sha256": "sha256"}
        return {"url": path.name, **{name: record[kept] for name, kept in names.items()}}
    if path.with_suffix(".json").is_file():
        raise UserError(f"{path} is cut or changed; delete it and run the step that makes {path.parent} again")
    return None


def read_index(folder: Path) -> dict:
    """Return the index of a folder of shards.

    Raises:
        UserError: `folder` has no index, or a damaged one.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"{folder} is not a finished folder of shards: no {FILE_NAME}; run the step that makes it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is cut or damaged; run the same command that made it again") from None


def shards_there(folder: Path, index: dict) -> Iterator[tuple[dict, os.stat_result | None]]:
    """Yield the entry of every shard of an index and the status of its tar; None where tar or sidecar is missing, or
    the tar is not as long as it was.

    By listing and sizes: nothing is read.
    """
    there = set(os.listdir(folder))
    for entry in index["shardlist"]:
        name, status = entry["url"], None
        if name in there and f"{name.removesuffix('.tar')}.json" in there:
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                status = os.stat(f"{folder}/{name}")
        yield entry, status if status is not None and status.st_size == entry["filesize"] else None


def sidecar_bytes(folder: Path, index: dict) -> int:
    """Return the bytes of the sidecars of all shards of an index together, by their sizes; a missing one has none."""
    total = 0
    for entry in index["shardlist"]:
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(f"{folder}/{entry['url'].removesuffix('.tar')}.json").st_size
    return total


def index_hash(index: dict) -> str:
    """Return the hash of what an index lists: the classes, and the names and hashes of the shards."""
    return _digest([index["classes"], [[shard["url"], shard["sha256"]] for shard in index["shardlist"]]])


def content_hash(folder: Path) -> str:
    """Return the hash of a folder of shards, or of a data set with such folders `train`, `val` and `test`.

    It covers the classes, the names of the shards and their bytes; of a data set only `train` has to be there.
    """
    if (folder / FILE_NAME).is_file():
        return read_index(folder)["hash"]
    splits = [split for split in SPLITS if split == "train" or (folder / split / FILE_NAME).is_file()]
    return _digest([[split, read_index(folder / split)["hash"]] for split in splits])


def _digest(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
