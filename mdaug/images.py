"""8-bit images to tensors and back (float32, channels first, in [-1, 1]), and pictures of many images."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic and some more


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Return uint8 (..., H, W, C) as float32 (..., C, H, W) in [-1, 1]; 0 -> -1 and 255 -> 1."""
    return in_range(channels_first(image))


def channels_first(image: np.ndarray) -> torch.Tensor:
    """Return uint8 (..., H, W, C) as uint8 (..., C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, -3)))


def in_range(levels: torch.Tensor) -> torch.Tensor:
    """Return levels uint8 0 to 255 as float32 in [-1, 1], the same bits on every device."""
    # By a tensor: CUDA multiplies by the inverse of a plain number, which rounds otherwise.
    return levels.to(torch.float32) / torch.full((), 127.5, device=levels.device) - 1


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Return float (..., C, H, W) in [-1, 1], clipped and rounded, as uint8 (..., H, W, C)."""
    scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return np.moveaxis(scaled.cpu().numpy(), -3, -1)


def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all text in pictures."""
    return ImageFont.truetype(str(FONT), size)


def drawable(names: Sequence[str]) -> list[str]:
    """Return the names as they can be drawn: one in a script that `FONT` does not show is its number, from 1 on.

    Scripts that are written from right to left, or whose letters change with their neighbours, are not shown either.
    """
    return [name if all(map(_is_drawn, name)) else str(i) for i, name in enumerate(names, start=1)]


def _is_drawn(character: str) -> bool:
    return ord(character) in _glyphs() and unicodedata.bidirectional(character) not in ("R", "AL")


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(str(FONT)).get_charmap())


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str] = (),
    gap: int = 2,
    captions: Sequence[Sequence[str]] = (),
) -> np.ndarray:
    """Return one RGB picture (H, W, 3) of rows of equal-sized uint8 (H, W, C) images, C in {1, 3}.

    `labels` are written at the left of the rows (those of `drawable`), `captions` (a row of them for each row of
    images) into the images; a row that is shorter than the longest ends in white.
    """
    labels = drawable(labels)
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    letters = font(max(10, min(16, height // 6)))
    margin = int(max((letters.getlength(label) for label in labels), default=-2 * gap)) + 2 * gap
    sheet = Image.new("RGB", (margin + columns * (width + gap), len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            picture = Image.fromarray(np.broadcast_to(image, (height, width, 3)).copy())
            corner = (margin + x * (width + gap), y * (height + gap))
            sheet.paste(picture, corner)
            if y < len(captions) and x < len(captions[y]):
                place = (corner[0] + gap, corner[1] + height - gap)
                draw.text(place, captions[y][x], "white", letters, "ls", stroke_width=1, stroke_fill="black")
        if y < len(labels):
            draw.text((gap, y * (height + gap) + height // 2), labels[y], fill="black", font=letters, anchor="lm")
    return np.asarray(sheet)
