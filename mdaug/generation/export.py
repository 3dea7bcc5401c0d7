"""The samples as files: the layout that came in, `<class>/*.png`, or arrays in dB."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np

from mdaug.generation.plan import Plan
from shards.colormap import colormap, detect
from shards.dataset import decode_image
from shards.index import read_index
from shards.writer import finished

FOLDERS = {"folder": "images", "npy": "arrays"}


def write_files(plan: Plan, folder: Path) -> Path:
    """Write `images/<class>/<key>.png` or `arrays/<class>/<key>.npy` beside the shards, with metadata.csv.

    PNG files are the bytes of the shards, so size and colours are those of the training data; `mdaug pack` reads the
    folder. Arrays are float32 (H, W) in dB relative to the top of the colour scale, in [-dynamic_range_db, 0].
    The folder is written beside its final place and renamed.

    Returns:
        The folder.
    """
    final = folder / FOLDERS[plan.output_format]
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    suffix = ".png" if plan.output_format == "folder" else ".npy"
    for name in plan.counts:
        (temporary / name).mkdir(parents=True)
    with open(temporary / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        conditions = [f"condition_{name}" for name in plan.condition_names]
        table.writerow(["file", "class", "source", "seed", *conditions])
        for entry in read_index(folder)["shardlist"]:
            record = finished(folder / entry["url"])
            assert record is not None
            content = (folder / entry["url"]).read_bytes()
            for row, key in enumerate(record["keys"]):
                places = (record["members"][name][row] for name in ("png", "json"))
                image, text = (content[offset : offset + size] for offset, size in places)
                meta = json.loads(text)
                path = f"{meta['class']}/{key}{suffix}"
                (temporary / path).write_bytes(image if suffix == ".png" else _decibels(image, plan))
                table.writerow(
                    [path, meta["class"], meta["source"], meta["seed"], *(meta[name] for name in conditions)]
                )
    for name in plan.counts:
        if not any((temporary / name).iterdir()):
            (temporary / name).rmdir()
    shutil.rmtree(final, ignore_errors=True)
    os.rename(temporary, final)
    return final


def _decibels(image: bytes, plan: Plan) -> bytes:
    """Return the npy file of a picture whose lowest level is -dynamic_range_db and whose highest is 0 dB."""
    file = io.BytesIO()
    picture = decode_image(image)
    name = detect(plan.floor) if plan.floor and picture.shape[-1] == 3 else None
    levels = picture[..., 0] if name is None else colormap(name).invert(picture)
    np.save(file, (levels.astype(np.float32) / 255 - 1) * np.float32(plan.dynamic_range_db), allow_pickle=False)
    return file.getvalue()
