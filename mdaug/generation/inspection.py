"""Looking at finished shards: are they the bytes that were written, and are they pictures?"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from shards.dataset import decode_image
from shards.writer import finished

MISSING, DAMAGED, CONSTANT = "missing", "damaged", "constant"


@dataclass
class Inspection:
    """What one shard holds.

    Attributes:
        shard: file name.
        faults: kind ("missing", "damaged" or "constant") -> what it is in.
        rows: a row of the manifest for each sample.
        statistics: those of its sidecar.
    """

    shard: str
    faults: dict[str, list[str]] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    statistics: dict = field(default_factory=dict)


def is_whole(path: Path, keys: list[str], labels: list[int] | None, image_shape: list[int]) -> bool:
    """Return whether `inspect` finds a shard neither missing nor damaged."""
    return not {MISSING, DAMAGED} & inspect(path, keys, labels, image_shape).faults.keys()


def inspect(path: Path, keys: list[str], labels: list[int] | None, image_shape: list[int]) -> Inspection:
    """Read a shard to the last pixel.

    Args:
        path: the tar.
        keys: of the samples that it has to hold.
        labels: theirs, where they are known.
        image_shape: [H, W, C] of every image.
    """
    found = Inspection(path.name)
    record = finished(path)
    if record is None:
        return Inspection(path.name, {MISSING: [path.name]})
    content = path.read_bytes()
    if not _fits(record, content, keys, labels):
        return Inspection(path.name, {DAMAGED: [path.name]})
    found.statistics = record["statistics"]
    for row, (key, label) in enumerate(zip(record["keys"], record["labels"], strict=True)):
        try:
            image, meta = (
                content[offset : offset + size]
                for offset, size in (record["members"][name][row] for name in ("png", "json"))
            )
            pixels, about = decode_image(image), json.loads(meta)
        except Exception:  # whatever is said about bytes that are no picture or no JSON
            found.faults.setdefault(DAMAGED, []).append(path.name)
            continue
        if list(pixels.shape) != image_shape:
            found.faults.setdefault(DAMAGED, []).append(path.name)
        elif (pixels == pixels[0, 0]).all():
            found.faults.setdefault(CONSTANT, []).append(f"{path.name}: {key}")
        found.rows.append({"key": key, "file": f"{key}.png", "label": label, "shard": path.name, **about})
    return found


def _fits(record: dict, content: bytes, keys: list[str], labels: list[int] | None) -> bool:
    """Return whether the sidecar and the bytes of a shard are those of the samples expected."""
    same = record["keys"] == keys and labels in (None, record["labels"])
    return same and hashlib.sha256(content).hexdigest() == record["sha256"]
