"""The image folder that `simulate` and `spectrogram` write: pictures and a table of what each shows."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from shards import atomic
from shards.colormap import colormap
from shards.writer import disk_full_as_user_error

METADATA_FILE = "metadata.csv"


def encode(levels: np.ndarray, mode: str, colours: str = "jet-256", **options) -> bytes:
    """Return 8-bit levels (H, W) as the bytes of an image file, in a colour map (mode "rgb") or not ("gray")."""
    data = io.BytesIO()
    Image.fromarray(colormap(colours).palette[levels] if mode == "rgb" else levels).save(data, **options)
    return data.getvalue()


def write_picture(path: Path, data: bytes) -> None:
    """Write the bytes of a picture, whole or not at all; UserError when the disk is full."""
    with disk_full_as_user_error(path), atomic.replacing(path) as file:
        file.write(data)


def table(rows: list[dict]) -> str:
    """Return CSV text of the rows; columns in order of first appearance, empty where a class has no such parameter."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
