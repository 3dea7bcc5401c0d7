"""One image file: what it holds, and the PNG of the wanted size and number of channels that is packed."""

from __future__ import annotations

import functools
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageOps

from shards.colormap import colormap as colormap_of
from shards.colormap import nearest_maps

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F")

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
PNG_BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # then width, height, bit depth, colour type
ORIENTATION = 0x0112  # tag of EXIF; 1 is upright

# Hamming's kernel averages when it reduces (no aliasing), is sharper than bilinear, and has no negative lobes: Lanczos
# and bicubic would ring, which on a colour map such as jet draws edges in colours, hence levels, that were not there.
FILTER = Image.Resampling.HAMMING

SEEN = 24  # columns and rows of a picture that are looked at for its colour map
OFF_MAP = 60.0  # distance from a colour map in RGB units beyond which a colour is not one of it; JPEG stays below
ONE_COLOUR = 12  # most that the colours of a frame differ by, in any channel
NO_FRAME = (0, 0, 0, 0)
THUMB = 16  # side of the thumbnail that tells nearly equal pictures


@dataclass(frozen=True)
class Checked:
    """What an image file holds.

    Attributes:
        sha256: of its bytes.
        error: why it cannot be packed, or None; where it is set the fields below mean nothing.
        mode: Pillow's name of its pixel format.
        size: (width, height) in pixels, upright.
        channels: 1 where the picture is grey (by its format, or by three equal channels), else 3.
        peak: the largest value of a grey image, None for others.
        constant: whether all of its pixels are equal.
        turned: whether EXIF says that the stored pixels are turned or mirrored.
        pixels: `hash_pixels` of it where another picture has the same thumbnail, else "".
        thumbnail: bytes of THUMB x THUMB grey levels; nearly equal for pictures that look the same.
        maps: names of the colour maps that a coloured picture may be painted in, the likeliest first; none where it has
            the colours of none that is known.
        off_map: share of its colours that the first of them does not have.
        frame: (top, bottom, left, right) rows and columns of one colour that its map does not have.
    """

    sha256: str
    error: str | None = None
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    channels: int = 1
    peak: int | None = None
    constant: bool = False
    turned: bool = False
    pixels: str = ""
    thumbnail: bytes = b""
    maps: tuple[str, ...] = ()
    off_map: float = 0.0
    frame: tuple[int, int, int, int] = NO_FRAME


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
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if getattr(image, "n_frames", 1) > 1:
            return Checked(digest, f"holds {image.n_frames} pictures; save each as a file of its own")  # type: ignore[attr-defined]
        image.load()
        mode, turned = image.mode, _is_turned(image)
        if turned:
            image = ImageOps.exif_transpose(image)
        return _look(image, digest, mode, turned)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
        return Checked(digest, f"{kind}: {_plain(error)}")


def hash_pixels(path: Path) -> str:
    """Return the sha256 of size and pixels, upright and in 8 bits, of a file that `check` could read.

    It is equal for files that show the same, whatever their format.
    """
    with Image.open(path, formats=FORMATS) as image:
        image.load()
        shown = _shown(ImageOps.exif_transpose(image) if _is_turned(image) else image)
    if shown.ndim == 3 and _equal_channels(shown):
        shown = shown[..., 0]
    digest = hashlib.sha256(repr(shown.shape[:2]).encode())
    digest.update(np.ascontiguousarray(_eight_bit(shown)).data)
    return digest.hexdigest()


def _is_turned(image: Image.Image) -> bool:
    """Return whether EXIF says that the stored pixels are turned or mirrored."""
    tagged = image.format == "TIFF" or "exif" in image.info
    return tagged and image.getexif().get(ORIENTATION, 1) in range(2, 9)


def _shown(image: Image.Image) -> np.ndarray:
    """Return the pixels of a picture: grey (H, W) of any depth where its format is grey, else RGB uint8 (H, W, 3)."""
    return np.asarray(image if image.mode in GREY_MODES and image.mode not in ("LA", "La") else _on_white(image))


def _look(image: Image.Image, digest: str, mode: str, turned: bool) -> Checked:
    """Return what a decoded, upright picture shows."""
    if image.mode == "L":  # the plainest picture needs no array
        low, high = cast(tuple[int, int], image.getextrema())
        return Checked(
            digest, None, mode, image.size, 1, high, constant=low == high, turned=turned, thumbnail=_thumbnail(image)
        )
    shown = _shown(image)
    grey = shown.ndim == 2 or _equal_channels(shown)
    levels = shown if shown.ndim == 2 else shown[..., 0]
    eight_bit = image if image.mode == "RGB" else Image.fromarray(_eight_bit(shown))
    seen: dict = {}
    if not grey:
        seen["maps"], seen["off_map"], seen["frame"] = _colours(shown)
    return Checked(
        digest,
        None,
        mode,
        image.size,
        channels=1 if grey else 3,
        peak=int(levels.max()) if grey else None,
        constant=_one_colour(shown),
        turned=turned,
        thumbnail=_thumbnail(eight_bit),
        **seen,
    )


def _thumbnail(image: Image.Image) -> bytes:
    """Return THUMB x THUMB grey levels of a picture in 8 bits."""
    # Whole blocks are averaged first: a resize of the picture itself takes three times as long.
    blocks = max(1, image.width // THUMB), max(1, image.height // THUMB)
    small = image.reduce(blocks).convert("L")
    return (small if small.size == (THUMB, THUMB) else small.resize((THUMB, THUMB), Image.Resampling.BOX)).tobytes()


def _eight_bit(pixels: np.ndarray) -> np.ndarray:
    """Return pixels of any depth as uint8, 16 bits divided by 257."""
    if pixels.dtype in (bool, np.uint8):
        return pixels * np.uint8(255) if pixels.dtype == bool else pixels
    return (pixels.astype(np.float64) / 257).clip(0, 255).astype(np.uint8)


def _colours(pixels: np.ndarray) -> tuple[tuple[str, ...], float, tuple[int, int, int, int]]:
    """Return (colour maps, share of colours off the first, frame) of a picture uint8 (H, W, 3); see `Checked`."""
    some = _some(pixels)
    maps = nearest_maps(some.reshape(-1, 3))
    if not maps:
        return (), 0.0, NO_FRAME
    own = colormap_of(maps[0])
    is_off = own.is_farther(some, OFF_MAP)
    off = float(is_off.mean())
    if not (is_off[0, 0] or is_off[0, -1] or is_off[-1, 0] or is_off[-1, -1]):
        return maps, off, NO_FRAME

    def border(lines: np.ndarray) -> int:
        """Return how many of the lines (n, length, 3), from the first, have the colour of the first, off the map."""
        first = lines[0].astype(int)
        if np.ptp(first, axis=0).max() > ONE_COLOUR or not own.is_farther(lines[0][:1], OFF_MAP)[0]:
            return 0
        # In steps, since most pictures have no frame.
        count = 1
        while count < len(lines) // 2 and np.abs(lines[count].astype(int) - first[0]).max() <= ONE_COLOUR:
            count += 1
        return count

    turned = pixels.transpose(1, 0, 2)
    return maps, off, (border(pixels), border(pixels[::-1]), border(turned), border(turned[::-1]))


@functools.lru_cache(maxsize=64)
def _spread(side: int) -> np.ndarray:
    """Return at most SEEN rows or columns at equal distances."""
    return np.linspace(0, side - 1, min(SEEN, side)).astype(int)


def to_png(
    path: Path,
    size: tuple[int, int],
    channels: int,
    colormap: str | None = None,
    own_map: str | None = None,
    crop: tuple[int, int, int, int] = NO_FRAME,
    turned: bool = False,
) -> bytes:
    """Return the image as PNG of `size` (width, height), 8 bits, grey (channels 1) or RGB (channels 3).

    The image is turned upright as EXIF says, 16-bit grey is divided by 257, transparency is laid over white, colours
    become grey by luma (ITU-R 601). A PNG that is all that already is returned byte for byte. With a colour map the PNG
    holds levels, and the map as its palette; colours are inverted before the image is resized, so that no colours are
    mixed.

    Args:
        path: the image file.
        size: (width, height) in pixels.
        channels: 1 or 3.
        colormap: the map of the set, which becomes the palette; None leaves colours as they are.
        own_map: the map of this image's colours; by default that of the set.
        crop: rows and columns to leave out at (top, bottom, left, right).
        turned: whether EXIF says that the stored pixels are turned or mirrored.
    """
    data = path.read_bytes()
    mode = "L" if channels == 1 else "RGB"
    if colormap is None and not turned and not any(crop) and _is_png_of(data, size, channels):
        return data
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    is_jpeg = image.format == "JPEG"
    image.load()
    if turned:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = _on_white(image)
    if any(crop):
        top, bottom, left, right = crop
        image = image.crop((left, top, image.width - right, image.height - bottom))
    if colormap is not None and image.mode not in GREY_MODES:
        image = _levels(image, own_map or colormap)
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != size:
        image = image.resize(size, FILTER)
    if colormap is not None:
        image = colormap_of(colormap).picture(np.asarray(image))
    file = io.BytesIO()
    # Level 6: 7 % smaller, three times as slow. What JPEG leaves repeats in runs alone, if at all: looking for nothing
    # else is faster by a sixth, and the files are smaller by a tenth.
    image.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE if is_jpeg else zlib.Z_DEFAULT_STRATEGY)
    return file.getvalue()


def _is_png_of(data: bytes, size: tuple[int, int], channels: int) -> bool:
    """Return whether a file is a PNG of a size, with 8 bits, grey or RGB, and without transparency."""
    header = PNG_BEGIN + struct.pack(">IIBB", *size, 8, 0 if channels == 1 else 2)
    return data.startswith(header) and b"tRNS" not in data[: data.find(b"IDAT")]


def _levels(image: Image.Image, colormap: str) -> Image.Image:
    """Return the levels behind the colours of a picture; three equal channels are the levels themselves."""
    pixels = np.asarray(image.convert("RGB"))
    return Image.fromarray(pixels[..., 0] if _equal_channels(pixels) else colormap_of(colormap).invert(pixels))


def _equal_channels(pixels: np.ndarray) -> bool:
    """Return whether the three channels of a picture uint8 (H, W, 3) are equal."""
    return all(
        bool((part[..., 0] == part[..., 1]).all() and (part[..., 0] == part[..., 2]).all())
        for part in (_some(pixels), pixels)  # what is not true of a few need not be looked for in all
    )


def _one_colour(pixels: np.ndarray) -> bool:
    """Return whether all pixels of a picture (H, W) or (H, W, 3) are equal."""
    return all(bool((part == pixels[0, 0]).all()) for part in (_some(pixels), pixels))


def _some(pixels: np.ndarray) -> np.ndarray:
    """Return at most SEEN rows and columns of a picture (H, W) or (H, W, 3) at equal distances, with its corners."""
    return pixels[_spread(len(pixels))[:, None], _spread(pixels.shape[1])]


def _on_white(image: Image.Image) -> Image.Image:
    """Return a picture as RGB, transparency laid over white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")


def _plain(error: Exception) -> str:
    """Return the message of an error in one line, without the address of the buffer that Pillow names."""
    text = " ".join(str(error).split())
    return "not a PNG, JPEG, BMP, TIFF or WebP" if "cannot identify image" in text else text or type(error).__name__
