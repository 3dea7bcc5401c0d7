"""Checks of option values; the size of images as users write it: 256, or 128x256 for height x width."""

from __future__ import annotations

LARGEST = 16384  # pixels of a side; a mistyped number would fill the memory with the first image


def height_width(size: int | str) -> tuple[int, int]:
    """Return (height, width) in pixels of `256` or `"128x256"`; raises ValueError for anything else."""
    sides = str(size).split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) <= LARGEST for side in sides):
        raise ValueError(
            f"image_size is {size}; a number of pixels such as 256, or height x width such as 128x256, is needed, "
            f"each at most {LARGEST}"
        )
    return int(sides[0]), int(sides[-1])


def written(height: int, width: int) -> int | str:
    """Return the size as the flag `--image_size` takes it: one number where the image is square."""
    return height if height == width else f"{height}x{width}"
