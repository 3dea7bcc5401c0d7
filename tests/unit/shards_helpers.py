"""Small shards and image folders for the tests of the data plane."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from shards.dataset import ShardDataset
from shards.index import write_index
from shards.options import PackConfig
from shards.pack import run as pack
from shards.verify import verify
from shards.writer import write_shard


def png(value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """Return an image of `size` (width, height) that no other `value` gives."""
    rng = np.random.default_rng(value)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    pixels = rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def samples(first: int, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    for i in range(first, first + count):
        meta = json.dumps({"class": "ab"[i % 2], "number": i}).encode()
        latent = npy(np.full((2, 3, 4), i, dtype=np.float32))
        yield f"sample-{i:03d}", {"png": png(i), "cls": str(i % 2).encode(), "json": meta, "npy": latent}


def shard_folder(folder: Path, counts: tuple[int, ...] = (5, 1, 4)) -> Path:
    """Write shards of `counts` samples, numbered through, and their index."""
    first = 0
    for number, count in enumerate(counts):
        write_shard(folder / f"{number:06d}.tar", samples(first, count))
        first += count
    write_index(folder, ["a", "b"], image_shape=[8, 8, 3])
    return folder


def image_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def numbered_folder(root: Path, classes: dict[str, list[int]], size: tuple[int, int] = (8, 8)) -> Path:
    """Write root/<class>/<class>_<number>.png, every image another."""
    names = [f"{name}/{name}_{number}.png" for name, numbers in classes.items() for number in numbers]
    return image_folder(root, {name: png(i, size) for i, name in enumerate(names)})


def contents(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of every file that is not hidden, but for provenance.json, which holds the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name != "provenance.json"
    }


def packed_set(source: Path, output: Path, **options) -> dict:
    """Pack in this process and return the report, after checking that it adds up with what was written."""
    pack(PackConfig(source, output, **{"workers": 1, **options}))
    report = json.loads((output / "report.json").read_text())
    assert verify(output) == []
    assert report["found"] == report["packed"] + len(report["rejected"])
    written = [
        ShardDataset(output / side, ("meta",))[i]["meta"]["source"]
        for side, part in report["splits"].items()
        for i in range(part["samples"])
    ]
    assert sorted(written) == sorted(set(written))
    assert len(written) == report["packed"]
    files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and path.parent != source]
    assert sorted(written + [entry["file"] for entry in report["rejected"]]) == sorted(files)
    return report
