"""Label-safe augmentation of spectrograms: changes after which an image still shows its class.

Columns are time, rows Doppler with zero in the middle. There are two ways in. A `Policy` says how strong each transform
is; classifiers are trained and asked with it. It keeps what it did to every image, so that it can be done again.

    policy = Policy(stretch=0.15, doppler_scale=0.1)
    images = policy(images, np.random.default_rng(0))

The augmented copies of `mdaug encode` are rows of numbers, one or two for each transform, all zero for an image that
stays as it is. A network that gets the row as input also learns what images look like without augmentation, and gets
zeros when it samples (Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", section
5 and appendix F.2; Jun et al. 2020, "Distribution augmentation").

Needs numpy and torch alone: the recipe of `mdaug augment` copies this file beside the classifier.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

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

    row = torch.from_numpy(np.asarray(rows, dtype=np.float32))

    def of(name: str, index: int = 0) -> torch.Tensor:
        return row[:, PLACES[name][index], None]

    did = {
        "turn": torch.atan2(of("roll", 0), of("roll", 1) + 1) / (2 * math.pi),
        "shift": of("shift") * MAX_SHIFT,
        "doppler_scale": of("doppler_scale") * math.log1p(MAX_SCALE),
        "doppler_shift": of("doppler_shift") * MAX_DOPPLER_SHIFT,
        "gain": of("gain") * MAX_GAIN,
        "time_mask": of("time_mask", 0),
        "time_mask_width": of("time_mask", 1) * MAX_MASK,
        "doppler_mask": of("doppler_mask", 0),
        "doppler_mask_width": of("doppler_mask", 1) * MAX_MASK,
        "flip_time": of("flip_time"),
        "flip_doppler": of("flip_doppler"),
    }
    noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype=np.float32))
    return _render(images, did, (of("noise") * MAX_NOISE)[:, :, None, None] * noise, floor)


@dataclass(frozen=True)
class Policy:
    """How strong each transform is; 0 leaves it out. Every image gets its own draw of all of them.

    Attributes:
        shift: largest move in time, either way, as share of the width; 0.5 with `circular` is a turn by any amount.
        stretch: largest stretch of time, either way: 0.15 makes a motion up to 15 % faster or slower.
        doppler_scale: largest scale of the Doppler frequencies about zero: a speed that differs by so much.
        doppler_shift: largest shift in Doppler as share of the height.
        contrast: largest change of the dynamic range above the floor.
        gain: largest offset of levels in [-1, 1].
        noise: largest standard deviation of white noise, of levels in [-1, 1].
        time_mask, doppler_mask: largest half width of a band that is set to the floor, as share of the side.
        mix: parameter of the beta distribution of mixup (Zhang et al. 2018), applied by `classifier.train`.
        circular: time goes round, as in a periodic motion; else what moves in is the floor.
        copies: transformed copies over which predictions are averaged; 0: the image as it is.
        seed: of these copies.
    """

    shift: float = 0.0
    stretch: float = 0.0
    doppler_scale: float = 0.0
    doppler_shift: float = 0.0
    contrast: float = 0.0
    gain: float = 0.0
    noise: float = 0.0
    time_mask: float = 0.0
    doppler_mask: float = 0.0
    mix: float = 0.0
    circular: bool = True
    copies: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a strength that leaves nothing of an image."""
        for name in STRENGTHS:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be at least 0 and at most 1")
        if self.copies < 0 or self.seed < 0:
            raise ValueError(f"copies={self.copies} and seed={self.seed} must be at least 0")

    def __call__(self, images: Any, rng: np.random.Generator, floor: Sequence[float] | None = None) -> Any:
        """Return transformed images, of the type that is given: uint8 (n, H, W, C), or float (n, C, H, W) in [-1, 1].

        `floor` is the level of no echo, see `transform`.
        """
        return self.apply(images, self.draw(len(images), rng), floor)

    def draw(self, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return what will be done to `count` images: name -> (count,) numbers, the history that `apply` repeats.

        The numbers of a transform do not depend on the strength of the others.
        """
        values = {name: rng.uniform(-1, 1, count) for name in DRAWN}
        did = {name: values[name] * getattr(self, name) for name in ("shift", "doppler_shift", "contrast", "gain")}
        did |= {name: values[name] * math.log1p(getattr(self, name)) for name in ("stretch", "doppler_scale")}
        did["noise"] = np.abs(values["noise"]) * self.noise
        for name in ("time_mask", "doppler_mask"):
            did[name] = values[name]
            did[f"{name}_width"] = np.abs(values[f"{name}_width"]) * getattr(self, name)
        did = {name: numbers.astype(np.float32) for name, numbers in did.items()}
        did["noise_seed"] = rng.integers(2**63, size=count)
        return did

    def apply(self, images: Any, did: Mapping[str, Any], floor: Sequence[float] | None = None) -> Any:
        """Return images to which a history was done; the same history gives the same pixels, for one image or many."""
        import torch

        if not isinstance(images, torch.Tensor):
            levels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))).float() / 127.5 - 1
            changed = self.apply(levels, did, floor).add(1).mul(127.5).round().to(torch.uint8).numpy()
            return np.ascontiguousarray(np.moveaxis(changed, 1, -1))
        numbers = {
            name: torch.as_tensor(np.asarray(values), dtype=torch.float32)[:, None]
            for name, values in did.items()
            if name != "noise_seed"
        }
        noise: torch.Tensor | float = 0.0
        if self.noise:
            drawn = np.empty(tuple(images.shape), dtype=np.float32)
            for i, seed in enumerate(did["noise_seed"]):
                np.random.Generator(np.random.Philox(key=int(seed))).standard_normal(out=drawn[i], dtype=np.float32)
            noise = torch.from_numpy(drawn) * numbers["noise"][:, :, None, None]
        return _render(images, numbers, noise, floor, self.circular)

    def to_json(self) -> dict[str, Any]:
        """Return the policy as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Policy:
        """Return the policy of `to_json`; raises ValueError for a name that it does not have."""
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"a policy has no '{unknown[0]}'; it has {', '.join(field.name for field in fields(cls))}")
        return cls(**values)


STRENGTHS = tuple(field.name for field in fields(Policy))[:10]
DRAWN = (*STRENGTHS[:-1], "time_mask_width", "doppler_mask_width")
TODAY = Policy(shift=0.5, gain=0.1, noise=MAX_NOISE)  # the arm "real + transforms" of `mdaug evaluate`
COPIES = 8
# The free baseline: better than TODAY, or as good, on every set of docs/usefulness.md, motions that repeat among them.
RICHER = Policy(
    shift=0.25,
    stretch=0.15,
    doppler_scale=0.1,
    doppler_shift=0.02,
    contrast=0.2,
    gain=0.1,
    noise=MAX_NOISE,
    circular=False,
)


def _render(
    images: torch.Tensor,
    did: Mapping[str, torch.Tensor],
    noise: torch.Tensor | float,
    floor: Sequence[float] | None,
    circular: bool = False,
) -> torch.Tensor:
    """Return images to which the named things, each (n, 1), were done; what is not named was not done."""
    import torch

    _, channels, height, width = images.shape
    level = torch.tensor([-1.0] * channels if floor is None else list(floor))[None, :, None, None]
    none = torch.zeros(len(images), 1)

    def of(name: str) -> torch.Tensor:
        return did.get(name, none)

    # Time: out[column] = in[source].
    middle = (width - 1) / 2
    source = torch.arange(width) - (of("shift") * width).round()
    if of("stretch").any():
        source = (source - middle) / torch.exp(of("stretch")) + middle
    empty = (source < -0.5) | (source > width - 0.5)
    if circular:
        empty = torch.zeros_like(empty)
    else:
        source = source.clamp(0, width - 1)
    source = (source - (of("turn") * width).round()) % width
    source = torch.where(of("flip_time") > 0, width - 1 - source, source)
    out = _gather(images, source, 3)

    # Doppler: scaled about zero, then shifted; beyond the edge the picture is mirrored.
    middle = (height - 1) / 2
    place = torch.arange(height) - middle - of("doppler_shift") * height
    place = place / torch.exp(of("doppler_scale"))
    place = torch.where(of("flip_doppler") > 0, -place, place) + middle
    out = _gather(out, height - 1 - (height - 1 - place.abs()).abs(), 2)

    # Levels.
    if of("contrast").any():
        out = level + (out - level) * (1 + of("contrast")[:, :, None, None])
    out = (out + of("gain")[:, :, None, None] + noise).clamp(-1, 1)

    masked = (empty | _band(of("time_mask"), of("time_mask_width"), width))[:, None, None, :]
    masked = masked | _band(of("doppler_mask"), of("doppler_mask_width"), height)[:, None, :, None]
    return torch.where(masked, level, out)


def _gather(images: torch.Tensor, place: torch.Tensor, axis: int) -> torch.Tensor:
    """Return images read at other places along an axis, (n, side); colours from the nearest, levels between two."""
    import torch

    count, channels, side = len(images), images.shape[1], images.shape[axis]
    below = place.round() if channels == 3 else place.floor()
    weight = place - below
    lines = images.movedim(axis, 2).contiguous()  # whole lines of the other axis are copied
    flat = lines.view(-1, lines.shape[3])
    first_line = side * torch.arange(count * channels).view(count, channels, 1)

    def at(index: torch.Tensor) -> torch.Tensor:
        return flat.index_select(0, (first_line + index.long()[:, None]).view(-1)).view(lines.shape)

    out = at(below.clamp(0, side - 1) if axis == 2 else below % side)
    if channels != 3 and weight.any():
        second = at((below + 1).clamp(0, side - 1) if axis == 2 else (below + 1) % side)
        out = out + weight[:, None, :, None] * (second - out)
    return out.movedim(2, axis)


def _band(centre: torch.Tensor, width: torch.Tensor, length: int) -> torch.Tensor:
    """Return which of `length` pixels lie in a band, (n, length): centre in [-1, 1], half its width in shares of 2."""
    import torch

    place = (2 * torch.arange(length) + 1) / length - 1
    return (place - centre).abs() < width
