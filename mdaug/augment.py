"""Label-safe augmentation of spectrograms: changes after which an image still shows its class.

Columns are time, rows Doppler with zero in the middle. An augmentation is a row of numbers, one or two for each
transform, all zero for an image that stays as it is. A network that gets the row as input also learns what images look
like without augmentation, and gets zeros when it samples (Karras et al. 2022, "Elucidating the design space of
diffusion-based generative models", section 5 and appendix F.2; Jun et al. 2020, "Distribution augmentation").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

MAX_SHIFT = 0.25  # of the width
MAX_SCALE = 0.05  # of the Doppler frequencies: a speed that differs by 5 %
MAX_DOPPLER_SHIFT = 0.03  # of the height
MAX_GAIN, MAX_NOISE = 0.1, 0.04  # of levels in [-1, 1]
MAX_MASK = 0.125  # of the side that is masked

# Transform -> its places in the row.
PLACES = {
    "roll": (0, 1),
    "shift": (2,),
    "doppler_scale": (3,),
    "doppler_shift": (4,),
    "gain": (5,),
    "noise": (6,),
    "time_mask": (7, 8),
    "doppler_mask": (9, 10),
    "flip_time": (11,),
    "flip_doppler": (12,),
}
SIZE = 13  # numbers in a row
# A flip in time turns sitting down into standing up, one in Doppler approaching into leaving: only the user knows
# whether the classes allow it. "shift" is for events, which "roll" would cut in two.
SAFE = ("roll", "doppler_scale", "doppler_shift", "gain", "noise", "time_mask", "doppler_mask")
LEVELS_ONLY = ("gain", "noise")  # on colours they would make colours that the map does not have


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a transform that does not exist, naming those that do."""
    for name in names:
        if name not in PLACES:
            raise ValueError(f"augment_with={name} must be one of {', '.join(PLACES)}")


def generator_at(seed: int, key: str, copy: int) -> np.random.Generator:
    """Return the random generator of one copy of one image: a function of seed, key and copy alone."""
    digest = hashlib.sha256(f"{seed}/{copy}/{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")))


def draw(rng: np.random.Generator, names: Sequence[str], count: int = 1, probability: float = 0.5) -> np.ndarray:
    """Return `count` augmentations, float32 (count, SIZE); each transform of `names` is on with `probability`.

    A transform's numbers lie in [-1, 1] (those of roll are sine and cosine - 1 of the angle that it turns time by;
    width and noise are in (0, 1]) and are the same whatever other transforms are named.
    """
    values = rng.uniform(-1, 1, (count, SIZE))
    angle = math.pi * values[:, 0]
    values[:, 0], values[:, 1] = np.sin(angle), np.cos(angle) - 1
    positive = [*PLACES["noise"], PLACES["time_mask"][1], PLACES["doppler_mask"][1]]
    values[:, positive] = 1 - np.abs(values[:, positive])
    values[:, [*PLACES["flip_time"], *PLACES["flip_doppler"]]] = 1
    on = rng.random((count, len(PLACES))) < probability
    for column, (name, places) in enumerate(PLACES.items()):
        values[:, places] *= (on[:, column] & (name in names))[:, None]
    return values.astype(np.float32)


def transform(
    images: torch.Tensor, rows: np.ndarray, rng: np.random.Generator, floor: Sequence[float] | None = None
) -> torch.Tensor:
    """Return augmented images; a row of zeros leaves its image as it is.

    Rows of an image between two others are interpolated. In coloured images (C = 3) the nearer is taken: a colour
    between two of a map is not in the map.

    Args:
        images: float32 (n, C, H, W) in [-1, 1].
        rows: (n, SIZE), from `draw`.
        rng: where the noise comes from.
        floor: the level of no echo, one per channel, in [-1, 1], for masks and what "shift" leaves empty; default -1.
    """
    import torch

    _, channels, height, width = images.shape
    row = torch.from_numpy(np.asarray(rows, dtype=np.float32))

    def of(name: str, index: int = 0) -> torch.Tensor:
        return row[:, PLACES[name][index], None]

    # Time: out[column] = in[source].
    turn = torch.atan2(of("roll", 0), of("roll", 1) + 1) / (2 * math.pi)
    source = torch.arange(width) - (of("shift") * MAX_SHIFT * width).round().long()
    empty = (source < 0) | (source >= width)
    source = (source - (turn * width).round().long()) % width
    source = torch.where(of("flip_time") > 0, width - 1 - source, source)
    out = images.gather(3, source[:, None, None, :].expand_as(images))

    # Doppler: scaled about zero, then shifted; beyond the edge the picture is mirrored.
    middle = (height - 1) / 2
    place = torch.arange(height) - middle - of("doppler_shift") * MAX_DOPPLER_SHIFT * height
    place = place / torch.exp(of("doppler_scale") * math.log1p(MAX_SCALE))
    place = torch.where(of("flip_doppler") > 0, -place, place) + middle
    place = height - 1 - (height - 1 - place.abs()).abs()
    below = place.round() if channels == 3 else place.floor()
    weight = (place - below)[:, None, :, None] if channels != 3 else 0.0
    first, second = (
        out.gather(2, index.long().clamp(0, height - 1)[:, None, :, None].expand_as(out))
        for index in (below, below + 1)
    )
    out = first + weight * (second - first)

    out = out + (of("gain") * MAX_GAIN)[:, :, None, None]
    noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype=np.float32))
    out = (out + (of("noise") * MAX_NOISE)[:, :, None, None] * noise).clamp(-1, 1)

    level = torch.tensor([-1.0] * channels if floor is None else list(floor))[None, :, None, None]
    masked = (empty | _band(of("time_mask", 0), of("time_mask", 1), width))[:, None, None, :]
    masked = masked | _band(of("doppler_mask", 0), of("doppler_mask", 1), height)[:, None, :, None]
    return torch.where(masked, level, out)


def _band(centre: torch.Tensor, width: torch.Tensor, length: int) -> torch.Tensor:
    """Return which of `length` pixels lie in a band, (n, length); its width in shares of MAX_MASK."""
    import torch

    place = (2 * torch.arange(length) + 1) / length - 1
    return (place - centre).abs() < width * MAX_MASK
