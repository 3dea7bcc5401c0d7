"""Colour maps: from the scalar that a radar measured to the colours that its owner looks at, and back.

Pictures are inverted in one place, where they are packed, and painted in one place: by the palette of
the PNG that holds the scalar. Programs read one channel, and any viewer shows the user's colours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

# A floor colour may differ by this much (of 255, in any channel) from that of its map: JPEG does so by up to 3.
FLOOR_TOLERANCE = 6

# Levels of equal distance; straight lines between them are within 2 of 255 (parula) and 1 of 255 (viridis) of the maps.
# parula is that of MATLAB R2014b to R2016b.
_PARULA = np.array([
    (0.2081, 0.1663, 0.5292), (0.2123, 0.2138, 0.6270), (0.1959, 0.2645, 0.7279), (0.1253, 0.3242, 0.8303),
    (0.0117, 0.3875, 0.8820), (0.0165, 0.4266, 0.8786), (0.0498, 0.4586, 0.8641), (0.0723, 0.4887, 0.8467),
    (0.0793, 0.5200, 0.8312), (0.0641, 0.5570, 0.8240), (0.0343, 0.5966, 0.8199), (0.0239, 0.6287, 0.8038),
    (0.0228, 0.6535, 0.7768), (0.0384, 0.6743, 0.7436), (0.0843, 0.6928, 0.7062), (0.1453, 0.7098, 0.6646),
    (0.2178, 0.7250, 0.6193), (0.3022, 0.7376, 0.5712), (0.3953, 0.7459, 0.5244), (0.4871, 0.7491, 0.4840),
    (0.5709, 0.7485, 0.4494), (0.6473, 0.7456, 0.4188), (0.7184, 0.7411, 0.3905), (0.7858, 0.7356, 0.3633),
    (0.8507, 0.7299, 0.3360), (0.9139, 0.7258, 0.3063), (0.9739, 0.7314, 0.2666), (0.9990, 0.7653, 0.2164),
    (0.9880, 0.8066, 0.1794), (0.9697, 0.8481, 0.1475), (0.9589, 0.8949, 0.1132), (0.9661, 0.9514, 0.0755),
    (0.9763, 0.9831, 0.0538),
])  # fmt: skip
_VIRIDIS = np.frombuffer(bytes.fromhex(
    "44015445085b470f62471669481d6f482374472a7946307d453681433c844142863e48883c4d8a3a538b37588c355d8c32628d30678d2e6c8e"
    "2c718e2a768e287a8e267f8e24848d23898d218d8c1f928c1e978a1e9b891ea08720a58523a98228ae7f2eb27c35b7783dbb7445bf6f4fc369"
    "59c76464cb5d70ce567cd24f88d54795d73fa2da37afdc2ebdde26cae01ed7e219e4e318f1e51cfde724"
), np.uint8).reshape(-1, 3) / 255  # fmt: skip


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

    def invert(self, image: np.ndarray) -> np.ndarray:
        """Return the levels uint8 (H, W) of the entries nearest to the colours of an RGB image uint8 (H, W, 3)."""
        packed = image.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        found, place = np.unique(packed, return_inverse=True)
        colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.float32)
        entries = self.colours.astype(np.float32)
        # argmin |c - e|^2 = argmin |e|^2 - 2 c.e; all values are integers below 2^24, so float32 is exact
        nearest = (np.square(entries).sum(1) - 2 * colours @ entries.T).argmin(1)
        levels = np.round(nearest * 255 / (len(entries) - 1)).astype(np.uint8)
        return levels[place].reshape(image.shape[:2])

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


def _between(anchors: np.ndarray) -> np.ndarray:
    """Return 256 entries on straight lines between anchors (n, 3) in [0, 1]."""
    x = np.linspace(0, len(anchors) - 1, 256)
    lines = [np.interp(x, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.round(255 * np.stack(lines, axis=1)).astype(np.uint8)


_MAKERS = {
    "jet-256": jet,
    "jet-64": lambda: jet(64),
    "matplotlib-jet": _matplotlib_jet,
    "parula": lambda: _between(_PARULA),
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


def detect(floor: list[int]) -> str | None:
    """Return the name of the map whose lowest colour is `floor` (R, G, B), give or take JPEG; None if none is."""
    away = {name: np.abs(colormap(name).colours[0].astype(int) - floor).max() for name in COLORMAPS}
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] <= FLOOR_TOLERANCE else None
