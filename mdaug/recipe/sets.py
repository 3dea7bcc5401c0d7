"""Some of a recipe's images as a packed set, at the size that the classifier sees: what a generator is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mdaug.generation.shard import to_png
from mdaug.recipe.training_set import Stored
from shards import atomic
from shards.index import content_hash, write_index
from shards.output_folder import claim
from shards.writer import write_shard

PER_SHARD = 256  # samples


def write(folder: Path, parts: dict[str, tuple[Stored, np.ndarray]], classes: Sequence[str], size: int) -> Path:
    """Write a packed set, unless the folder holds it already, and return its folder.

    Args:
        folder: where.
        parts: "train" and, if it is to be validated on, "val" -> where the images lie, and their labels, int64 (n,).
        classes: names of the labels; those without training images are left out.
        size: side in pixels.
    """
    kept = np.unique(parts["train"][1])
    names = [classes[label] for label in kept]
    listing = {
        split: [[stored.datasets[i].keys[stored.indices[i]], int(label)] for i, label in enumerate(labels)]
        for split, (stored, labels) in parts.items()
    }
    identity = {"image_size": size, "images": hashlib.sha256(json.dumps([names, listing]).encode()).hexdigest()}
    output = claim(folder, "pack", identity, wait=True)
    if output.finished:
        return folder
    output.begin_again()
    for split, (stored, labels) in parts.items():
        place, numbers = folder / split, np.searchsorted(kept, labels)
        place.mkdir(parents=True, exist_ok=True)
        for shard, first in enumerate(range(0, len(labels), PER_SHARD)):
            those = range(first, min(first + PER_SHARD, len(labels)))
            write_shard(place / f"{shard:06d}.tar", _samples(those, stored, numbers, names, size))
        index = stored.datasets[0].index
        extra = {"colormap": index["colormap"]} if "colormap" in index else {}
        write_index(place, names, image_shape=[size, size, index["image_shape"][2]], **extra)
    atomic.write_text(folder / "classes.json", json.dumps(names, ensure_ascii=False))
    output.finish("images", content_hash(folder), identity)
    return folder


def _samples(
    those: range, stored: Stored, labels: np.ndarray, names: Sequence[str], size: int
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for i in those:
        dataset, index = stored.datasets[i], stored.indices[i]
        sample = dataset[index]
        pixels = sample["image"]
        if pixels.shape[:2] != (size, size):
            flat = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
            resized = np.asarray(flat.resize((size, size), Image.Resampling.BILINEAR))
            pixels = resized.reshape(size, size, pixels.shape[2])
        meta = {**sample["meta"], "class": names[labels[i]], "key": dataset.keys[index]}
        yield (
            f"{i:08d}",
            {
                "png": to_png(pixels, dataset.index.get("colormap")),
                "cls": str(labels[i]).encode(),
                "json": json.dumps(meta, ensure_ascii=False).encode(),
            },
        )
