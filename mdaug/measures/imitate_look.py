"""What spectrograms show, for `mdaug simulate --like`: axis, movements, noise and texture of a set.

The axis comes from the metadata of the set, or from flags. Pictures of the set and of the simulator are read alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from mdaug.measures import image_set, kinematics, realism
from mdaug.measures.image_set import ImageSet
from mdaug.measures.kinematics import Axes
from mdaug.measures.levels import BRIGHTNESS, GRAY, MOST_ROWS, palette, to_levels
from mdaug.radar.fit import Fit
from mdaug.radar.options import CLASSES, SimulateConfig
from mdaug.radar.presets import STREAM
from shards.errors import UserError

MOST_PER_CLASS = 200
FEWEST = 5  # pictures that show a figure, below which it is not known
NEARBY, SILENT = 8, 0.1  # steps to either side; their largest over that of a whole picture, below which all is floor
STILL = 0.25  # step from one column to the next over the largest nearby, below which it repeats the last one
REPEATED = 0.2  # share of steps that repeat in a picture that was enlarged by nearest neighbour
FULL = 250  # mean of the highest levels, from which every picture has its own maximum at the top of the range

AXIS = {
    "v_max_m_s": ("velocity at the upper edge", "m/s"),
    "duration_s": ("time span", "s"),
    "window_s": ("window", "s"),
    "carrier_hz": ("carrier", "Hz"),
    "clip_db": ("dynamic range", "dB"),
}
NEEDED = ("v_max_m_s", "duration_s")
FIGURES = {"speed": "m/s", "cadence": "1/s", "reach": "m/s"}
"""speed: of the torso, without sign; cadence: steps, swings or beats; reach: the faster envelope. See `kinematics`."""
UPRIGHT = (STREAM, "walking")  # these are seen to approach or to go


@dataclass(frozen=True)
class Spread:
    """Median of a figure, and its standard deviations between groups and within; None where groups do not say."""

    centre: float
    between: float | None
    within: float

    @classmethod
    def of(cls, values: np.ndarray, groups: np.ndarray) -> Spread | None:
        """Return the spread of values (n,), NaN where a picture does not show them, over groups (n,) of names."""
        known = ~np.isnan(values)
        values, groups = values[known], groups[known]
        if len(values) < FEWEST:
            return None
        centre, names = float(np.median(values)), np.unique(groups)
        parts = [values[groups == name] for name in names]
        inside = sum(((part - part.mean()) ** 2).sum() for part in parts)
        freedom = len(values) - len(names)
        if len(names) < 2 or freedom == 0:
            return cls(centre, None, float(values.std()))
        within = inside / freedom
        means = np.array([part.mean() for part in parts])
        between = means.var(ddof=1) - within * np.mean([1 / len(part) for part in parts])
        return cls(centre, float(np.sqrt(max(between, 0))), float(np.sqrt(within)))

    def __str__(self) -> str:
        between = "" if self.between is None else f"{self.between:.2f} between, "
        return f"{self.centre:.2f} ± {between}{self.within:.2f}" + ("" if self.between is None else " within")


@dataclass(frozen=True)
class Look:
    """What the pictures of a class show.

    Attributes:
        levels: uint8 (n, 64, 64), as `realism` takes them.
        groups: n names of persons, or of recordings.
        spreads: figure -> its spread, None where too few pictures show it.
        approaching: share of pictures whose torso approaches.
        floor_share, median: of all pixels: share at the floor; level.
        top: mean and standard deviation over pictures of their highest level.
        grain: differences of neighbouring levels along Doppler over those along time: rises with the window.
    """

    levels: np.ndarray
    groups: list[str]
    spreads: dict[str, Spread | None]
    approaching: float
    floor_share: float
    median: float
    top: tuple[float, float]
    grain: float


def look(pictures: Iterable[np.ndarray], groups: list[str], colours: str, axes: Axes) -> Look:
    """Return what pictures uint8 (H, W, C), in a palette of `levels.palette`, show."""
    fine, small, tops = [], [], []
    for picture in pictures:
        shown = to_levels(picture, colours)
        tops.append(shown.max())
        (height, width), whole = shown.shape, Image.fromarray(shown)
        fine.append(np.asarray(whole.resize((min(width, MOST_ROWS), min(height, MOST_ROWS)), Image.Resampling.BOX)))
        small.append(np.asarray(whole.resize((realism.SIZE, realism.SIZE), Image.Resampling.BOX)))
    values, levels, names = kinematics.measure(np.stack(fine), axes), np.stack(small), np.array(groups)
    reach = np.fmax(np.abs(values["upper"]), np.abs(values["lower"]))
    figures = {"speed": np.abs(values["torso"]), "cadence": values["cadence"], "reach": reach}
    texture = realism.statistics(levels)
    return Look(
        levels,
        groups,
        {name: Spread.of(figure, names) for name, figure in figures.items()},
        float(np.mean(values["torso"] > 0)),
        float((levels <= realism.FLOOR).mean()),
        float(np.median(levels)),
        (float(np.mean(tops)), float(np.std(tops))),
        texture["step_doppler"] / max(texture["step_time"], 1e-9),
    )


@dataclass(frozen=True)
class Measured:
    """The set that is imitated.

    Attributes:
        images: its training images.
        looks: class of the preset -> what the images that it imitates show.
        imitates: class of the preset -> class of the set, None for all of it.
        said: names of AXIS -> value that the metadata hold, None where they do not.
        axes: what its rows, columns and levels mean.
        fit: what is known without a simulation.
        native: rows and columns that its pictures were enlarged from by nearest neighbour, None where that is not seen.
    """

    images: ImageSet
    looks: dict[str, Look]
    imitates: dict[str, str | None]
    said: dict[str, float | None]
    axes: Axes
    fit: Fit
    native: tuple[int | None, int | None]


def read(packed: Path, options: SimulateConfig) -> Measured:
    """Return what the training images of a packed set say and show.

    Raises UserError for an axis that neither they nor a flag says, and for classes that the set does not have.
    """
    images = image_set.load(packed / "train", image_size=32, max_per_class=MOST_PER_CLASS)
    imitates = _imitated(options, images.dataset.classes)
    # The axis. A flag says what the set does not; where both do, the set is read by its own.
    meta = [images.dataset[int(i)]["meta"] for i in images.indices]
    said = {name: _common(meta, name) for name in AXIS}
    known = {name: said[name] or getattr(options, name) for name in AXIS}
    questions = [] if imitates else [_which(images.dataset.classes)]
    if lacking := [name for name in NEEDED if known[name] is None]:
        flags = " and ".join(f"--{name} ({AXIS[name][0]} in {AXIS[name][1]})" for name in lacking)
        questions.append(f"what its axes mean, the same for all images; give {flags}")
    if questions:
        raise UserError(f"{options.like} does not say {'; nor '.join(questions)}")
    clip_db = known["clip_db"] or kinematics.CLIP_DB
    axes = Axes(known["v_max_m_s"], known["duration_s"] - (known["window_s"] or 0.0), clip_db, physical=True)
    # Palette, size, and the pixels before they were enlarged.
    colours, (height, width, _) = palette(images), images.original(0).shape
    native = _native(images)
    sensor = {name: value for name, value in known.items() if name != "clip_db" and value is not None}
    sensor |= {"rows": native[0] or options.image_size or height, "columns": native[1] or options.image_size or width}
    map_of_set = images.dataset.index.get("colormap") or (colours if colours not in (GRAY, BRIGHTNESS) else None)
    # What each class shows.
    persons = [images.dataset.classes[label] for label in images.labels] if options.preset != "families" else None
    looks = {}
    for name, other in imitates.items():
        chosen = np.flatnonzero([other in (None, images.dataset.classes[label]) for label in images.labels])
        groups = [(persons or images.groups)[int(i)] for i in chosen]
        looks[name] = look((images.original(int(i)) for i in chosen), groups, colours, axes)
    approaching = {name: looks[name].approaching for name in looks if name in UPRIGHT}
    peaks = {
        name: ((255 - mean) / 255 * clip_db, spread / 255 * clip_db)
        for name, (mean, spread) in ((name, each.top) for name, each in looks.items())
        if mean < FULL
    }
    mode: Literal["rgb", "gray"] = "rgb" if map_of_set else "gray"
    fit = Fit(sensor, clip_db, (height, width), mode, map_of_set, approaching=approaching, peak_db=peaks)
    return Measured(images, looks, imitates, said, axes, fit, native)


def _imitated(options: SimulateConfig, classes: list[str]) -> dict[str, str | None]:
    """Return class of the preset -> class of the set, None for all of it; none where neither names nor flags say."""
    if options.preset != "families":
        return {STREAM: None}
    if strangers := [name for name in options.imitated.values() if name not in classes]:
        raise UserError(f"like_classes: {options.like} has no class {strangers[0]}; it has {', '.join(classes[:20])}")
    names = options.classes or list(options.imitated) or [name for name in CLASSES if name in classes]
    return {name: options.imitated.get(name, name if name in classes else None) for name in names}


def _which(classes: list[str]) -> str:
    """Return the question which class shows what."""
    return (
        f"which of its classes ({', '.join(classes[:20])}) shows what (none is called {', '.join(CLASSES)}); give "
        f"--like_classes such as [walking={classes[0]}], or --classes [walking] where people walk in all of them, or "
        "--preset gait-persons where each is a walking person"
    )


def _common(meta: list[dict], name: str) -> float | None:
    """Return the number that all images have in a column of the metadata, or None."""
    values = {row.get(name) for row in meta}
    value = values.pop() if len(values) == 1 else None
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _native(images: ImageSet) -> tuple[int | None, int | None]:
    """Return rows and columns of the pictures before they were enlarged by nearest neighbour; None where not seen.

    Where all is floor nothing changes, so steps are compared with those nearby; brightness, because JPEG keeps it finer
    than colours.
    """
    some = np.linspace(0, len(images) - 1, min(len(images), 40)).astype(int)
    pictures = (np.squeeze(images.original(int(i))) for i in some)
    brightness = np.stack([np.asarray(Image.fromarray(picture).convert("L"), np.float32) for picture in pictures])
    found = []
    for axis in (1, 2):
        steps = np.abs(np.diff(brightness, axis=axis)).mean(axis=(0, 3 - axis))
        nearby = ndimage.maximum_filter1d(steps, 2 * NEARBY + 1)
        known = nearby > SILENT * np.quantile(steps, 0.9)
        repeats = (steps < STILL * nearby)[known].mean()
        changes = ((steps >= STILL * nearby) & (steps == ndimage.maximum_filter1d(steps, 3)))[known].mean()
        found.append(round(changes * len(steps)) + 1 if repeats > REPEATED else None)
    return found[0], found[1]
