"""Random access to a folder of shards through memory maps: any order, no read-ahead, nothing to skip on resume."""

from __future__ import annotations

import bisect
import functools
import io
import json
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from shards.errors import UserError
from shards.index import read_index
from shards.writer import finished

FIELDS = {"image": ("png", "jpg", "jpeg"), "array": ("npy",), "meta": ("json",)}


class ShardDataset(Dataset):
    """A map-style dataset over a folder with `index.json`, shards and their sidecars.

    Sample i of the folder is sample i - first of the shard with first <= i < first + count. Maps are opened when a
    process first needs them, so the object travels to workers by fork or pickle.

    Args:
        folder: the folder of shards, such as `packed/train`.
        fields: which of "image", "array", "meta" `__getitem__` returns beside key and label.

    Attributes:
        classes: class names; a label is an index into them.
        labels: (n,) int64.
        keys: n strings.
        index: the content of index.json.
        hash: the content hash of the folder.
        shards: (file name, first index, count) of every shard.

    Raises:
        UserError: no index, a shard that is missing or cut, a field that the shards do not hold; at access: a sample
            that cannot be decoded, named with its key.
    """

    def __init__(self, folder: Path, fields: Sequence[str] = ("image",)):
        self.folder = Path(folder)
        self.fields = tuple(fields)
        self.index = read_index(self.folder)
        self.classes: list[str] = self.index["classes"]
        self.hash: str = self.index["hash"]
        self.keys: list[str] = []
        self.shards: list[tuple[str, int, int]] = []
        self._maps: list[tuple[str, int, int]] = []
        labels: list[np.ndarray] = []
        places: dict[str, list[np.ndarray]] = {field: [] for field in fields}
        for entry in self.index["shardlist"]:
            record = _sidecar(self.folder / entry["url"], entry)
            self.shards.append((entry["url"], len(self.keys), record["count"]))
            status = (self.folder / entry["url"]).stat()
            self._maps.append((str(self.folder / entry["url"]), status.st_size, status.st_mtime_ns))
            self.keys += record["keys"]
            labels.append(np.asarray(record["labels"], dtype=np.int64))
            for field in fields:
                extension = next((name for name in FIELDS[field] if name in record["members"]), None)
                if extension is None:
                    held = ", ".join(sorted(record["members"]))
                    raise UserError(f"{self.folder / entry['url']} holds {held}, but '{field}' is needed here")
                places[field].append(np.asarray(record["members"][extension], dtype=np.int64))
        self.labels = np.concatenate(labels) if labels else np.empty(0, dtype=np.int64)
        self._first = [first for _, first, _ in self.shards]
        self._places = {field: np.concatenate(parts) for field, parts in places.items() if parts}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def __getitem__(self, i: int) -> dict:
        """Return sample i.

        Returns:
            {"key": str, "label": int} and per requested field "image": uint8 (H, W, C) with C in {1, 3}; "array": the
            npy array; "meta": the dict of the json.
        """
        if not 0 <= i < len(self.keys):
            raise IndexError(f"sample {i} of {len(self.keys)}")
        sample = {"key": self.keys[i], "label": int(self.labels[i])}
        for field in self.fields:
            data = self.raw(i, field)
            try:
                sample[field] = DECODERS[field](data)
            except Exception as error:  # decoders raise many types for damaged bytes
                raise UserError(
                    f"sample '{self.keys[i]}' of {self.folder} has no readable {field} ({error}); "
                    f"find what is damaged with: python -m shards.verify {self.folder}"
                ) from error
        return sample

    def raw(self, i: int, field: str) -> bytes:
        """Return the stored bytes of sample i, such as the PNG of field "image"."""
        shard = _mapped(*self._maps[bisect.bisect_right(self._first, i) - 1])
        offset, size = self._places[field][i].tolist()
        return shard[offset : offset + size]


def decode_image(data: bytes) -> np.ndarray:
    """Return a PNG or JPEG as uint8 (H, W, C), C = 1 for grey and for levels with a palette, 3 for anything else."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    if image.mode not in ("L", "P", "RGB"):
        image = image.convert("RGB")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def decode_array(data: bytes) -> np.ndarray:
    """Return the array of an npy file; arrays of Python objects (pickle) are refused.

    Raises:
        ValueError: the array holds Python objects, or is not in NPY format 1.0.
    """
    length = 10 + int.from_bytes(data[8:10], "little")
    if data[:8] != b"\x93NUMPY\x01\x00" or len(data) < length:
        raise ValueError("not in NPY format 1.0")
    shape, fortran, dtype = _npy_header(data[:length])
    if dtype.hasobject:
        raise ValueError("Python objects, which only pickle could read, are refused; store plain numbers")
    flat = np.frombuffer(data, dtype=dtype, offset=length).copy()
    return flat.reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Parse a header once: the samples of a shard share it, and parsing costs more than reading a latent."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(header[8:]))


DECODERS: dict[str, Callable[[bytes], Any]] = {"image": decode_image, "array": decode_array, "meta": json.loads}


@functools.lru_cache(maxsize=256)
def _mapped(path: str, size: int, changed: int) -> mmap.mmap:
    """Map a shard, at most 256 at once in a process (file descriptors are few); `changed` identifies a new file."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise UserError(_damaged(Path(path)))
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)


def _sidecar(path: Path, entry: dict) -> dict:
    """Return the sidecar of a shard after comparing names, sizes and hashes with the index."""
    record = finished(path)
    if record is None or (record["bytes"], record["sha256"]) != (entry["filesize"], entry["sha256"]):
        raise UserError(_damaged(path))
    return record


def _damaged(path: Path) -> str:
    return (
        f"{path} is missing, cut or changed since it was written, or its sidecar is; run the command that made its "
        "folder again: it makes what is missing"
    )
