"""samples-HASH.npy: label and place of every sample of a folder, mapped into memory by all that read it.

    label               uint16   index of the class
    image, array, meta  uint32   where this member of the sample begins in its tar, in blocks of 512 bytes

A row per sample in the order of index.json, whose hash the name repeats: 6 to 14 bytes for a sample, once for all
processes of a machine. The size and the key of a member are not repeated: they are in its tar header, the block before.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards import mapped
from shards.errors import UserError
from shards.pool import Pool
from shards.writer import BLOCK, finished

FIELDS = {"image": ("png", "jpg", "jpeg"), "array": ("npy",), "meta": ("json",)}
HASH = 12  # letters of the hash of an index in the names of its tables
SHARDS_PER_PROCESS = 1000  # sidecars that are read in the time in which a process starts


def file_name(index: dict) -> str:
    """Return the name of the file that belongs to the content of an index."""
    return f"samples-{index['hash'][:HASH]}.npy"


def write(folder: Path, index: dict) -> None:
    """Write the file from the sidecars of the shards that an index lists, and remove those of other contents.

    Raises UserError for a shard that is not what the index says.
    """
    if not index["shardlist"]:
        return
    mapped.write(folder / file_name(index), _dtype(folder, index), (index["nsamples"],), _rows(folder, index))
    for path in (*folder.glob("samples-*.npy"), *folder.glob("columns-*.npy")):
        if index["hash"][:HASH] not in path.name:
            path.unlink(missing_ok=True)


def read(folder: Path, index: dict) -> np.ndarray:
    """Return the rows, mapped, (n,) with the fields that the shards hold.

    The first process that reads a folder of an older version writes the file; where it cannot be written each process
    keeps the rows in memory. Raises UserError for a shard that is not what the index says, or a damaged file.
    """
    if not index["shardlist"]:
        return np.empty(0, dtype=[("label", "<u2")])
    path, shape = folder / file_name(index), (index["nsamples"],)
    return mapped.read(path, shape, lambda: _dtype(folder, index), lambda: _rows(folder, index))


def damaged(path: Path) -> str:
    """Return what to do about a shard that is not what the index says."""
    return (
        f"{path} is missing, cut or changed since it was written, or its sidecar is; run the command that made its "
        "folder again: it makes what is missing"
    )


def _dtype(folder: Path, index: dict) -> np.dtype:
    """Return the row: a place for each field that the first shard holds."""
    members = _sidecar(index["shardlist"][0], folder)["members"]
    held = [field for field, extensions in FIELDS.items() if any(name in members for name in extensions)]
    return np.dtype([("label", "<u2"), *((field, "<u4") for field in held)])


def _rows(folder: Path, index: dict) -> Iterator[bytes]:
    """Yield the rows of each shard; many shards are read by all cores."""
    entries = index["shardlist"]
    with Pool(jobs=1 + len(entries) // SHARDS_PER_PROCESS, shared=(folder, _dtype(folder, index))) as pool:
        yield from pool.map(_rows_of, entries, chunk=64)


def _rows_of(entry: dict, folder: Path, dtype: np.dtype) -> bytes:
    """Return the rows of a shard; 0 is the place of a member that it does not hold."""
    record = _sidecar(entry, folder)
    rows = np.zeros(record["count"], dtype=dtype)
    rows["label"] = record["labels"]
    for field in dtype.names[1:] if dtype.names else ():
        for extension in FIELDS[field]:
            if extension in record["members"]:
                rows[field] = np.asarray(record["members"][extension], dtype=np.int64)[:, 0] // BLOCK
                break
    return rows.tobytes()


def _sidecar(entry: dict, folder: Path) -> dict:
    """Return the sidecar of a shard after comparing sizes and hashes with the index."""
    path = folder / entry["url"]
    record = finished(path)
    if record is None or (record["bytes"], record["sha256"]) != (entry["filesize"], entry["sha256"]):
        raise UserError(damaged(path))
    return record
