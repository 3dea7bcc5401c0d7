"""The samples as files: the layout that came in, `<class>/*.png`, or arrays in dB."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np

from mdaug.generation.plan import Plan
from shards import atomic
from shards.colormap import colormap, detect
from shards.dataset import ShardDataset, decode_image

FOLDERS = {"folder": "images", "npy": "arrays"}


def write_files(plan: Plan, folder: Path) -> Path:
    """Write `images/<class>/<key>.png` or `arrays/<class>/<key>.npy` beside the shards, with metadata.csv.

    PNG files are the bytes of the shards, so size and colours are those of the training data; `mdaug pack` reads the
    folder. Arrays are float32 (H, W) in dB relative to the top of the colour scale, in [-dynamic_range_db, 0].
    Returns:
        The folder.
    """
    final = folder / FOLDERS[plan.output_format]
    suffix = ".png" if plan.output_format == "folder" else ".npy"
    samples = ShardDataset(folder, fields=("image", "meta"))
    columns = [f"condition_{name}" for name in plan.condition_names]
    columns += ["strength", "from_key", "from_class"] if plan.redraw else []
    with (
        atomic.replacing_folder(final) as temporary,
        open(temporary / "metadata.csv", "w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "class", "source", "seed", *columns])
        for i in range(len(samples)):
            key, image, meta = samples.key(i), samples.raw(i, "image"), json.loads(samples.raw(i, "meta"))
            path = f"{meta['class']}/{key}{suffix}"
            (temporary / meta["class"]).mkdir(exist_ok=True)
            (temporary / path).write_bytes(image if suffix == ".png" else _decibels(image, plan))
            table.writerow([path, meta["class"], meta["source"], meta["seed"], *(meta[name] for name in columns)])
    return final


def _decibels(image: bytes, plan: Plan) -> bytes:
    """Return the npy file of a picture whose lowest level is -dynamic_range_db and whose highest is 0 dB."""
    file = io.BytesIO()
    picture = decode_image(image)
    name = detect(plan.floor) if plan.floor and picture.shape[-1] == 3 else None
    levels = picture[..., 0] if name is None else colormap(name).invert(picture)
    np.save(file, (levels.astype(np.float32) / 255 - 1) * np.float32(plan.dynamic_range_db), allow_pickle=False)
    return file.getvalue()
