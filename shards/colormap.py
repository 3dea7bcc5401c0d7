"""Colour maps: from the scalar that a radar measured to the colours that people look at, and back.

Pictures are inverted in one place, where they are packed, and painted in one place: by the palette of the PNG that
holds the scalar. Programs read one channel, and any viewer shows the user's colours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from shards.dataset import ShardDataset

FLOOR_IMAGES = 64  # images of a set in which its floor is looked for
# A floor colour may differ by this much (of 255, in any channel) from that of its map: JPEG does so by up to 3.
FLOOR_TOLERANCE = 6
ON_MAP = 30.0  # median distance in RGB units of the pixels of a picture from its map; JPEG in jet has about 23
ALIKE = 8.0  # maps whose distances differ by less are told apart by their floor
MOST_COMPARED = 128  # pixels of a picture that are compared with every map


def _table(text: str) -> np.ndarray:
    """Return colours in hexadecimal as uint8 (n, 3); they lie at equal distances, with straight lines between them."""
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3)


# MATLAB's parula(64) until R2016b, and since R2017a. Facts: the same figures are in several public copies each.
_PARULA = _table(
    "352a873630933637a0353dad3243ba2c4ac72053d40f5cdd0363e10268e1046de00871de0d75dc1079da127dd81481d61485d41389d3108ed2"
    "0c93d20998d1079ccf06a0cd06a4ca06a7c607a9c20aacbe0faeb915b1b41db3af25b5a92eb7a438b99e42bb984dbc9259bd8c65be8671bf80"
    "7cbf7b87bf7792bf739cbf6fa5be6baebe67b7bd64c0bc60c8bc5dd1bb59d9ba56e1b952e9b94ef1b94af8bb44fdbe3dffc337fec832fcce2e"
    "fad32af7d826f5de21f5e41df5eb18f6f313f9fb0e"
)
_PARULA_2017 = _table(
    "3e26a8402ab4422ec04332cb4537d5463cde4741e54747eb484df04852f44758f8465efb4563fd4269fe3e6fff3875fe327cfc2f81fa2e87f7"
    "2d8cf32b91ef2797eb259be823a0e520a5e31ca9df18addb12b1d608b5d001b8ca02bac30bbdbd19bfb624c1ae2cc4a731c69f37c8973fca8e"
    "4acb8457cc7a64cd6f72cd6481cc598fcb4e9dc943abc739b9c431c5c22ad1bf27dcbd29e6bb2df0ba36f8ba3dfebe3cfec338fec934fccf30"
    "fad62df7dc2af5e327f5e924f6ef20f7f51bf9fb15"
)
# Every fifth of matplotlib's 256 colours of viridis.
_VIRIDIS = _table(
    "44015445085b470f62471669481d6f482374472a7946307d453681433c844142863e48883c4d8a3a538b37588c355d8c32628d30678d2e6c8e"
    "2c718e2a768e287a8e267f8e24848d23898d218d8c1f928c1e978a1e9b891ea08720a58523a98228ae7f2eb27c35b7783dbb7445bf6f4fc369"
    "59c76464cb5d70ce567cd24f88d54795d73fa2da37afdc2ebdde26cae01ed7e219e4e318f1e51cfde724"
)


@dataclass(frozen=True)
class Colormap:
    """A colour map.

    Attributes:
        name: one of COLORMAPS.
        colours: uint8 (n, 3); entry k stands for the level 255 k / (n - 1).
    """

    name: str
    colours: np.ndarray

    @property
    def palette(self) -> np.ndarray:
        """The colours of the levels 0 to 255, uint8 (256, 3); levels between two entries get the nearer one."""
        last = len(self.colours) - 1
        return self.colours[np.round(np.arange(256) * last / 255).astype(int)]

    @functools.cached_property
    def _known(self) -> np.ndarray:
        """1 + the level of every 24-bit colour seen so far, 0 for the others: uint16 (2 ** 24,)."""
        return np.zeros(1 << 24, np.uint16)  # memory is taken only where written: pictures hold few colours

    def invert(self, pictures: np.ndarray) -> np.ndarray:
        """Return the levels uint8 (...) of the entries nearest to the colours of RGB pictures uint8 (..., 3)."""
        red, green, blue = np.moveaxis(pictures, -1, 0)
        colours = red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue
        levels = self._known[colours]
        if not levels.all():
            new = np.unique(colours[levels == 0])
            self._known[new] = 1 + self._nearest(new)
            levels = self._known[colours]
        return (levels - 1).astype(np.uint8)

    def _nearest(self, colours: np.ndarray) -> np.ndarray:
        """Return the level of the entry nearest to each 24-bit colour (n,)."""
        rgb = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.float32)
        entries = self.colours.astype(np.float32)
        # argmin |c - e|^2 = argmin |e|^2 - 2 c.e; all values are integers below 2^24, so float32 is exact
        nearest = (np.square(entries).sum(1) - 2 * rgb @ entries.T).argmin(1)
        return np.round(nearest * 255 / (len(entries) - 1)).astype(np.uint16)

    def distance(self, pixels: np.ndarray) -> np.ndarray:
        """Return how far colours uint8 (..., 3) lie from the nearest of the map's, float32 (...), in RGB units."""
        return np.sqrt(_squares(self._weights, pixels.reshape(-1, 3))[0]).reshape(pixels.shape[:-1])

    @functools.cached_property
    def _weights(self) -> np.ndarray:
        """(-2 e, |e|^2) of the colours e, float32 (n, 4); see `_squares`."""
        entries = self.colours.astype(np.float32)
        return np.hstack([-2 * entries, np.square(entries).sum(1, keepdims=True)])

    def is_farther(self, pixels: np.ndarray, distance: float) -> np.ndarray:
        """Return whether colours uint8 (..., 3) lie farther than a distance from the map, bool (...).

        Most pixels are near: each is compared with every fourth entry, and few with all.
        """
        some = _squares(self._weights[::4], pixels.reshape(-1, 3))[0]
        farther = (some > distance**2).reshape(pixels.shape[:-1])
        farther[farther] = self.distance(pixels[farther]) > distance
        return farther

    def picture(self, levels: np.ndarray) -> Image.Image:
        """Return levels uint8 (H, W) as a picture of one channel with the colours as its palette."""
        picture = Image.fromarray(levels)
        picture.putpalette(self.palette.tobytes())
        return picture


def jet(entries: int = 256) -> np.ndarray:
    """Return MATLAB's jet as uint8 (entries, 3): dark blue, blue, cyan, yellow, red, dark red.

    With x = i / entries, i = 1 .. entries, each channel is the trapezoid 1.5 - 4 |x - c| cut to [0, 1], centred at
    c = 3/4 (red), 1/2 (green) and 1/4 (blue). The first entry, the floor of a spectrogram, is (0, 0, 131) for
    256 entries and (0, 0, 143) for 64; matplotlib's jet of the same name starts at (0, 0, 127) instead.
    """
    position = np.arange(1, entries + 1)[:, None] / entries
    ramp = 1.5 - 4 * np.abs(position - np.array([0.75, 0.5, 0.25]))
    return np.round(255 * np.clip(ramp, 0, 1)).astype(np.uint8)


def _matplotlib_jet() -> np.ndarray:
    """Return matplotlib's jet, uint8 (256, 3): straight lines between these corners, cut to integers."""
    x = np.arange(256) / 255
    red = np.interp(x, (0, 0.35, 0.66, 0.89, 1), (0, 0, 1, 1, 0.5))
    green = np.interp(x, (0, 0.125, 0.375, 0.64, 0.91, 1), (0, 0, 1, 1, 0, 0))
    blue = np.interp(x, (0, 0.11, 0.34, 0.65, 1), (0.5, 1, 1, 0, 0))
    return (255 * np.stack([red, green, blue], axis=1)).astype(np.uint8)


def _between(colours: np.ndarray) -> np.ndarray:
    """Return 256 entries on straight lines between colours uint8 (n, 3), as MATLAB enlarges its tables."""
    x = np.linspace(0, len(colours) - 1, 256)
    lines = [np.interp(x, np.arange(len(colours)), colours[:, channel]) for channel in range(3)]
    return np.round(np.stack(lines, axis=1)).astype(np.uint8)


_MAKERS = {
    "jet-256": jet,
    "jet-64": lambda: jet(64),
    "matplotlib-jet": _matplotlib_jet,
    "parula": lambda: _between(_PARULA),
    "parula-2017": lambda: _between(_PARULA_2017),
    "viridis": lambda: _between(_VIRIDIS),
}
COLORMAPS = tuple(_MAKERS)


@functools.cache
def colormap(name: str) -> Colormap:
    """Return the colour map of a name in COLORMAPS."""
    return Colormap(name, _MAKERS[name]())


def paint(image: np.ndarray, name: str | None) -> np.ndarray:
    """Return levels uint8 (H, W, 1) in the colours of a map, uint8 (H, W, 3); the image itself where there is none."""
    return image if name is None else colormap(name).palette[image[..., 0]]


def most_frequent(images: np.ndarray) -> list[int]:
    """Return the most frequent colour, C values 0 to 255, of images uint8 (..., C): the floor of spectrograms."""
    pixels = images.reshape(-1, images.shape[-1]).astype(np.int64)
    values, counts = np.unique(pixels @ (256 ** np.arange(pixels.shape[1])), return_counts=True)
    most = int(values[counts.argmax()])
    return [most >> 8 * channel & 255 for channel in range(pixels.shape[1])]


def nearest_maps(pixels: np.ndarray) -> tuple[str, ...]:
    """Return the names of the maps that pixels uint8 (n, 3) may be painted in, the likeliest first; () for none known.

    Several where they pass through much the same colours, as the three kinds of jet do; of those the one with the floor
    of the picture is first.
    """
    some = pixels[:: max(1, len(pixels) // MOST_COMPARED)]
    medians = np.partition(_squares(_weights_of_all(), some, len(COLORMAPS)), len(some) // 2, axis=1)[:, len(some) // 2]
    away = dict(zip(COLORMAPS, np.sqrt(medians).tolist(), strict=True))
    least = min(away.values())
    if least > ON_MAP:
        return ()
    alike = [name for name in COLORMAPS if away[name] <= least + ALIKE]
    if len(alike) == 1:
        return tuple(alike)
    floor = most_frequent(pixels)
    return tuple(
        sorted(alike, key=lambda name: (np.abs(colormap(name).colours[0].astype(int) - floor).max(), away[name]))
    )


@functools.cache
def _weights_of_all() -> np.ndarray:
    """Return those of 256 colours of each map, float32 (maps * 256, 4); a shorter map repeats its own."""
    return np.concatenate([np.resize(colormap(name)._weights, (256, 4)) for name in COLORMAPS])


def _squares(weights: np.ndarray, pixels: np.ndarray, maps: int = 1) -> np.ndarray:
    """Return the squared distance of each pixel uint8 (n, 3) from the nearest colour of each map, float32 (maps, n).

    |c - e|^2 = |c|^2 + |e|^2 - 2 c.e; all values are integers below 2^24, so float32 is exact.
    """
    colours = np.ones((4, len(pixels)), np.float32)
    colours[:3] = pixels.T
    products = (weights @ colours).reshape(maps, len(weights) // maps, len(pixels))
    return products.min(axis=1) + np.square(colours[:3]).sum(0)


def floor_of(dataset: ShardDataset, name: str | None = None) -> list[int]:
    """Return the most frequent colour, C values 0 to 255, of a set of images, painted in a colour map if one is named.

    Images at equal distances stand for the whole set.
    """
    shown = range(0, len(dataset), max(1, len(dataset) // FLOOR_IMAGES))
    return most_frequent(np.stack([paint(dataset[i]["image"], name) for i in shown]))


def detect(floor: list[int]) -> str | None:
    """Return the name of the map whose lowest colour is `floor` (R, G, B), give or take JPEG; None if none is."""
    away = {name: np.abs(colormap(name).colours[0].astype(int) - floor).max() for name in COLORMAPS}
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] <= FLOOR_TOLERANCE else None
