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

from shards import samples
from shards.errors import UserError
from shards.index import read_index, shards_there
from shards.writer import BLOCK, finished

OPEN_MAPS = 256  # shards that a process keeps open
NAME_ENDS, SIZE_BEGINS, SIZE_ENDS = 100, 124, 135  # bytes of name and size, in octal, in the tar header of a member


class ShardDataset(Dataset):
    """A map-style dataset over a folder with `index.json`, shards and their sidecars.

    Sample i of the folder is sample i - first of the shard with first <= i < first + count. No Python object is kept
    for a sample: labels and places are mapped (`shards.samples`), keys are read from the tar. Maps of shards are opened
    when a process first needs them, so the object travels to workers by fork or pickle.

    Args:
        folder: the folder of shards, such as `packed/train`.
        fields: which of "image", "array", "meta" `__getitem__` returns beside key and label.

    Attributes:
        classes: class names; a label is an index into them.
        labels: (n,) uint16, mapped.
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
        self._changed = self._require_shards()
        self._rows = samples.read(self.folder, self.index)
        self.labels: np.ndarray = self._rows["label"]
        ends = np.cumsum([0, *(entry["nsamples"] for entry in self.index["shardlist"])])
        self._first: list[int] = ends[:-1].tolist()
        names = [entry["url"] for entry in self.index["shardlist"]]
        self.shards = list(zip(names, self._first, np.diff(ends).tolist(), strict=True))
        for field in self.fields if self.shards else ():
            held = field in (self._rows.dtype.names or ())
            lacking = np.flatnonzero(self._rows[field][self._first] == 0) if held else [0]
            if len(lacking):
                path = self.folder / names[lacking[0]]
                members = ", ".join(sorted((finished(path) or {"members": ()})["members"]))
                raise UserError(f"{path} holds {members}, but '{field}' is needed here")

    def __reduce__(self) -> tuple:
        """Travel as the folder, which the other process maps itself."""
        return type(self), (self.folder, self.fields)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    def __getitem__(self, i: int) -> dict:
        """Return sample i.

        Returns:
            {"key": str, "label": int} and per requested field "image": uint8 (H, W, C) with C in {1, 3}; "array": the
            npy array; "meta": the dict of the json.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        sample = {"key": self.key(i), "label": int(self.labels[i])}
        for field in self.fields:
            try:
                sample[field] = DECODERS[field](self.raw(i, field))
            except UserError:
                raise
            except Exception as error:  # decoders raise many types for damaged bytes
                raise UserError(
                    f"sample '{sample['key']}' of {self.folder} has no readable {field} ({error}); "
                    f"find what is damaged with: python -m shards.verify {self.folder}"
                ) from error
        return sample

    @property
    def counts(self) -> list[int]:
        """The number of samples of each shard."""
        return [entry["nsamples"] for entry in self.index["shardlist"]]

    def key(self, i: int) -> str:
        """Return the key of sample i."""
        field = self.fields[0] if self.fields else (self._rows.dtype.names or ())[1]
        shard, start = self._place(i, field)
        return shard[start - BLOCK : start - BLOCK + NAME_ENDS].rstrip(b"\0").decode("ascii").partition(".")[0]

    @functools.cached_property
    def keys(self) -> list[str]:
        """The keys of all samples, for sets that fit into memory."""
        return [self.key(i) for i in range(len(self))]

    def raw(self, i: int, field: str) -> bytes:
        """Return the stored bytes of sample i, such as the PNG of field "image"."""
        shard, start = self._place(i, field)
        header = start - BLOCK
        return shard[start : start + int(shard[header + SIZE_BEGINS : header + SIZE_ENDS], 8)]

    def _place(self, i: int, field: str) -> tuple[mmap.mmap, int]:
        """Return the map of the shard of sample i, and where the field begins in it."""
        number = bisect.bisect_right(self._first, i) - 1
        entry = self.index["shardlist"][number]
        shard = _mapped(f"{self.folder}/{entry['url']}", entry["filesize"], self._changed[number])
        return shard, BLOCK * int(self._rows[field][i])

    def _require_shards(self) -> list[int]:
        """Return when each shard was written, in ns; raises UserError where one is missing or not as long as it was."""
        changed = []
        for entry, status in shards_there(self.folder, self.index):
            if status is None:
                raise UserError(samples.damaged(self.folder / entry["url"]))
            changed.append(status.st_mtime_ns)
        return changed


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


@functools.lru_cache(maxsize=OPEN_MAPS)
def _mapped(path: str, size: int, _changed: int) -> mmap.mmap:
    """Map a shard, at most OPEN_MAPS at once in a process (file descriptors are few); `_changed` tells a new file."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise UserError(samples.damaged(Path(path)))
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
