"""One image file to one PNG of the wanted size and number of channels."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.colormap import colormap as colormap_of

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F")

FORMATS = ("PNG", "JPEG")
PNG_BIT_DEPTH = 24  # offset of that byte of the IHDR chunk

# Hamming's kernel averages when it reduces (no aliasing), is sharper than bilinear, and has no negative lobes: Lanczos
# and bicubic would ring, which on a colour map such as jet draws edges in colours, hence levels, that were not there.
FILTER = Image.Resampling.HAMMING


@dataclass(frozen=True)
class Checked:
    """What an image file holds.

    Attributes:
        sha256: of its bytes.
        error: why it cannot be packed, or None; where it is set the fields below mean nothing.
        mode: Pillow's name of its pixel format.
        size: (width, height) in pixels.
        peak: the largest value of a 16-bit image, None for others.
    """

    sha256: str
    error: str | None = None
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    peak: int | None = None

    @property
    def channels(self) -> int:
        """1 where the image has no colour by its format, else 3."""
        return 1 if self.mode in GREY_MODES else 3


def check(path: Path) -> Checked:
    """Read and decode a file to the end, and say what it is or what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return Checked("", f"unreadable: {error.strerror}")
    digest = hashlib.sha256(data).hexdigest()
    if not data:
        return Checked(digest, "empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        peak = int(np.asarray(image).max()) if image.mode.startswith("I") else None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
        return Checked(digest, f"{kind}: {_plain(error)}")
    return Checked(digest, None, image.mode, image.size, peak)


def to_png(path: Path, size: tuple[int, int], channels: int, colormap: str | None = None) -> bytes:
    """Return the image as PNG of `size` (width, height), 8 bits, grey (channels 1) or RGB (channels 3).

    16-bit grey is divided by 257, transparency is laid over white, colours become grey by luma (ITU-R 601). A PNG that
    is all that already is returned byte for byte. With a colour map the PNG holds levels, and the map as its palette;
    colours are inverted before the image is resized, so that no colours are mixed.
    """
    data = path.read_bytes()
    mode = "L" if channels == 1 else "RGB"
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    as_wanted = (
        colormap is None and image.format == "PNG" and data[PNG_BIT_DEPTH] == 8 and not image.has_transparency_data
    )
    if as_wanted and (image.mode, image.size) == (mode, size):
        return data
    image.load()
    if image.mode.startswith("I"):
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if colormap is not None and image.mode not in GREY_MODES:
        image = Image.fromarray(colormap_of(colormap).invert(np.asarray(image.convert("RGB"))))
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != size:
        image = image.resize(size, FILTER)
    if colormap is not None:
        image = colormap_of(colormap).picture(np.asarray(image))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # level 6: 7 % smaller, three times as slow
    return file.getvalue()


def _plain(error: Exception) -> str:
    """Return the message of an error in one line, without the address of the buffer that Pillow names."""
    text = " ".join(str(error).split())
    return "not a PNG or JPEG" if "cannot identify image" in text else text or type(error).__name__
