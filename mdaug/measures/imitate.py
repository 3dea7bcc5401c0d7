"""`mdaug simulate --like`: radar, noise and movements are read from a set, and the simulator is set to what they are.

The set's axis comes from its metadata or from flags. Movements and noise are matched by measuring a few small simulated
batches exactly as the set is measured, and stretching the simulator's draws until the figures agree.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from mdaug.measures import image_set, kinematics, realism
from mdaug.measures.image_set import ImageSet
from mdaug.measures.kinematics import Axes
from mdaug.measures.levels import BRIGHTNESS, GRAY, MOST_ROWS, palette, to_levels
from mdaug.radar.fit import BOUNDS, USUAL, Fit, Stretch
from mdaug.radar.options import CLASSES, SimulateConfig
from mdaug.radar.presets import STREAM, Preset, preset_of
from mdaug.radar.simulate import draw_pictures, finish, identity, is_finished, write_pictures
from shards import atomic, provenance
from shards.errors import UserError
from shards.index import read_index
from shards.output_folder import claim, refuse_other
from shards.packed import is_packed, open_packed
from shards.pool import Pool
from shards.source import read_folder
from shards.validation import Preflight, written

JSON_FILE, TABLE_FILE = "like.json", "like.md"
ROUNDS, BATCH, PER_GROUP = 5, 40, 2  # simulated batches; pictures of each class in one, and of a person
WALKS, WALK_PICTURES = 10, 12  # of gait-persons: people, and the pictures of each, of a walk or two
MOST_PER_CLASS = 200
LARGEST = 256  # side to which an image folder is packed where --image_size does not say otherwise
FEWEST = 5  # pictures that show a figure, below which it is not known
NEARBY, SILENT = 8, 0.1  # steps to either side; their largest over that of a whole picture, below which all is floor
STILL = 0.25  # step from one column to the next over the largest nearby, below which it repeats the last one
REPEATED = 0.2  # share of steps that repeat in a picture that was enlarged by nearest neighbour
FULL = 250  # mean of the highest levels, from which every picture has its own maximum at the top of the range
HIDDEN = 0.05  # share of pixels at the floor, below which the noise stands above it
DB_STEP, SHARE_PER_DB = 8.0, 0.02  # largest change of the noise in a round; what a dB hides before a slope is known

AXIS = {
    "v_max_m_s": ("velocity at the upper edge", "m/s"),
    "duration_s": ("time span", "s"),
    "window_s": ("window", "s"),
    "carrier_hz": ("carrier", "Hz"),
    "clip_db": ("dynamic range", "dB"),
}
NEEDED = ("v_max_m_s", "duration_s")


@dataclass(frozen=True)
class Knob:
    """A figure of the pictures, and the parameters that move it.

    Attributes:
        figure: see `FIGURES`.
        parameters: names in the metadata.
        power: the figure goes about as a parameter to 1 / power.
        spread: whether the parameter's spread is matched, too.
    """

    figure: str
    parameters: tuple[str, ...]
    power: float = 1.0
    spread: bool = False


WALK = (
    Knob("speed", ("speed_m_s",), spread=True),
    Knob("cadence", ("cycle_scale",), power=-1, spread=True),
    Knob("reach", ("hip_scale", "knee_scale")),
)
SITTING = (Knob("reach", ("sitting_s",), power=-1),)
KNOBS = {
    STREAM: WALK,
    "walking": WALK,
    "arm_swing": (Knob("reach", ("amplitude_deg",), spread=True),),
    "sit_down": SITTING,
    "stand_up": SITTING,
    "drone": (Knob("speed", ("velocity_m_s",)),),
    "bird": (Knob("cadence", ("flap_hz",), spread=True),),
    "fall": (),
}
"""What is matched of each class. A fall has the speed and a swinging arm the period that gravity gives them."""
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


def check(options: SimulateConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else, or the set is not one; packs nothing."""
    assert options.like is not None
    made_from = {}
    if where.inputs_there and is_packed(options.like):
        made_from["like"] = provenance.read(options.like, "images")["hash"]
    elif where.inputs_there:
        read_folder(options.like)
    refuse_other(options.output_dir, "simulate", identity(options), made_from)


def run(options: SimulateConfig) -> None:
    """Write an image folder that resembles a set, like.json and like.md, which compare the two.

    Raises UserError for a folder that holds something else, an axis that neither the set nor a flag says, and classes
    that the set does not have.
    """
    packed = _open(options)
    made_from = {"like": provenance.read(packed, "images")["hash"]}
    output = claim(options.output_dir, "simulate", identity(options), made_from, wait=True)
    if is_finished(output):
        return
    measured = read(packed, options)
    if options.preset == "families":
        options = dataclasses.replace(options, classes=list(measured.imitates))
    output.begin_again()
    # Whatever an interrupted run has found stays.
    path = options.output_dir / JSON_FILE
    if path.is_file():
        fit = Fit.from_dict(json.loads(path.read_text(encoding="utf-8"))["fit"])
    else:
        fit = calibrate(measured, options)
        atomic.write_text(path, json.dumps({"fit": fit.as_dict()}, indent=1) + "\n")
    rows = write_pictures(options, fit, output)
    table, figures = compare(measured, options, fit, rows)
    record = {"imitates": measured.imitates, "fit": fit.as_dict(), "table": table, **figures}
    atomic.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    text = markdown(table)
    atomic.write_text(options.output_dir / TABLE_FILE, text)
    print(text, flush=True)
    finish(options, rows, output)


def _open(options: SimulateConfig) -> Path:
    """Return the packed set; an image folder is packed once, at --image_size or the size of its first picture."""
    folder = options.like
    assert folder is not None
    if is_packed(folder):
        height, width, _ = read_index(folder / "train")["image_shape"]
        return open_packed(folder, written(height, width))
    source = read_folder(folder)
    with Image.open(source.root / source.images[0].path) as first:
        sides = [max(32, min(side, LARGEST) // 8 * 8) for side in (first.height, first.width)]
    return open_packed(folder, options.image_size or written(*sides))


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
    if lacking := [name for name in NEEDED if known[name] is None]:
        asked = " and ".join(f"--{name} ({AXIS[name][0]} in {AXIS[name][1]})" for name in lacking)
        raise UserError(f"{options.like} does not say what its axes mean, the same for all images; give {asked}")
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
    """Return class of the preset -> class of the set, None for all of it."""
    if options.preset != "families":
        return {STREAM: None}
    if strangers := [name for name in options.imitated.values() if name not in classes]:
        raise UserError(f"like_classes: {options.like} has no class {strangers[0]}; it has {', '.join(classes[:20])}")
    names = options.classes or list(options.imitated) or [name for name in CLASSES if name in classes]
    if not names:
        raise UserError(
            f"{options.like} has none of the classes {', '.join(CLASSES)}; say which of its classes "
            f"({', '.join(classes[:20])}) shows what, such as --like_classes [walking={classes[0]}], or --classes "
            "[walking] where all of them do, or --preset gait-persons"
        )
    return {name: options.imitated.get(name, name if name in classes else None) for name in names}


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


def calibrate(measured: Measured, options: SimulateConfig) -> Fit:
    """Return the fit whose small batch is nearest to the set, of a few that approach it: no randomness of its own."""
    batches = {name: _batch_options(name, options) for name in measured.looks}
    jobs = sum(len(preset_of(each, measured.fit).jobs()) for each in batches.values())
    raw = {name: _rows(preset_of(each, measured.fit)) for name, each in batches.items()}
    fit, best, least = measured.fit, measured.fit, np.inf
    slopes: dict[str, tuple[float, float]] = {}
    with Pool(options.workers, jobs) as pool:
        for number in range(ROUNDS):
            looks = {}
            for name, each in batches.items():
                preset = preset_of(each, fit)
                drawn = pool.map(partial(draw_pictures, each, fit), preset.jobs())
                pictures = [picture for pictures in drawn for picture in pictures]
                looks[name] = look(pictures, _groups(_rows(preset)), _palette_of(options, fit), _axes(preset))
            distance = sum(_distance(name, measured.looks[name], looks[name]) for name in looks)
            print(f"batch {number + 1} of {ROUNDS}: distance {distance:.3f}", flush=True)
            if distance < least:
                best, least = fit, distance
            fit = _nearer(fit, measured, options, looks, raw, slopes)
    return best


def _batch_options(name: str, options: SimulateConfig) -> SimulateConfig:
    """Return the options of a small batch of one class."""
    if name == STREAM:
        return dataclasses.replace(options, num_persons=min(options.num_persons, WALKS), images_per_class=WALK_PICTURES)
    return dataclasses.replace(
        options, classes=[name], like_classes=None, images_per_class=BATCH, images_per_group=PER_GROUP
    )


def _rows(preset: Preset) -> list[dict]:
    return [row for job in preset.jobs() for row in job]


def _groups(rows: list[dict]) -> list[str]:
    """Return the person of each picture, or the group where that is one."""
    return [str(row.get("person", row["group"])) for row in rows]


def _axes(preset: Preset) -> Axes:
    sensor = preset.sensor
    return Axes(sensor.v_max_m_s, sensor.duration_s - sensor.window_s, float(preset.radar["clip_db"]), physical=True)


def _palette_of(options: SimulateConfig, fit: Fit) -> str:
    """Return in which palette simulated pictures come."""
    return (fit.colormap or "jet-256") if (options.image_mode or fit.image_mode) == "rgb" else GRAY


def _distance(name: str, measured: Look, simulated: Look) -> float:
    """Return the sum of squared logarithms of what a class is matched by, and the squared difference of its floor."""
    total = 4 * (measured.floor_share - simulated.floor_share) ** 2
    for knob in KNOBS[name]:
        here, there = measured.spreads[knob.figure], simulated.spreads[knob.figure]
        if here and there and here.centre > 0 and there.centre > 0:
            total += float(np.log(here.centre / there.centre)) ** 2
    return total


def _nearer(
    fit: Fit,
    measured: Measured,
    options: SimulateConfig,
    looks: dict[str, Look],
    raw: dict[str, list[dict]],
    slopes: dict[str, tuple[float, float]],
) -> Fit:
    """Return the next fit, from what the batch of the last one showed; `slopes` keeps noise and floor of a class."""
    stretches = {}
    for name, simulated in looks.items():
        target, of_class = measured.looks[name], dict(fit.stretches.get(name, {}))
        for knob in KNOBS[name]:
            here, there = target.spreads[knob.figure], simulated.spreads[knob.figure]
            if here and there and here.centre > 0 and there.centre > 0:
                for parameter in knob.parameters:
                    old = of_class.get(parameter, Stretch())
                    of_class[parameter] = _stretched(old, knob, parameter, here, there, raw[name])
        noise = of_class.get("snr_db", Stretch()).offset
        offset = noise + _noise_step(name, target, simulated, noise, measured.axes.clip_db, slopes)
        of_class["snr_db"] = Stretch(offset=float(np.clip(offset, -30, 30)))
        stretches[name] = of_class
    sensor = dict(fit.sensor)
    if options.window_s is None and measured.said["window_s"] is None:
        ratio = np.median([measured.looks[name].grain / looks[name].grain for name in looks])
        preset = preset_of(_batch_options(next(iter(looks)), options), fit).sensor
        low, high = 16 / preset.prf_hz, preset.duration_s / 4
        sensor["window_s"] = float(np.clip(preset.window_s * np.clip(np.sqrt(ratio), 0.5, 2), low, max(low, high)))
    return dataclasses.replace(fit, stretches=stretches, sensor=sensor)


def _stretched(old: Stretch, knob: Knob, parameter: str, here: Spread, there: Spread, raw: list[dict]) -> Stretch:
    """Return the stretch that moves a figure from `there` to `here`, by at most a factor of 2."""
    ratio = float(np.clip(here.centre / there.centre, 0.5, 2)) ** knob.power
    if not knob.spread:
        return Stretch(old.offset * ratio, old.between * ratio, old.within * ratio)
    # Spreads grow as they have to, around the mean that the ratio asks for.
    between, within = old.between, old.within
    if here.between is not None and there.between:
        between = float(np.clip(between * np.clip(here.between / there.between, 0.5, 2), 0, 3))
    elif here.between is None:
        total = float(np.hypot(there.between or 0, there.within))
        between = float(np.clip(between * np.clip(here.within / max(total, 1e-9), 0.5, 2), 0, 3))
    if here.between is not None and there.within and parameter in USUAL:
        within = float(np.clip(within * np.clip(here.within / there.within, 0.5, 2), 0, 3))
    value = np.array([row[parameter] for row in raw], float)
    usual = np.array([row.get(USUAL.get(parameter, parameter), row[parameter]) for row in raw], float)
    mean = float((old.offset + old.between * usual + old.within * (value - usual)).mean())
    middle = float(np.clip(mean * ratio, *BOUNDS[parameter]))
    return Stretch(middle - between * float(usual.mean()) - within * float((value - usual).mean()), between, within)


def _noise_step(
    name: str, target: Look, simulated: Look, noise: float, clip_db: float, slopes: dict[str, tuple[float, float]]
) -> float:
    """Return by how many dB the signal-to-noise ratio of a class has to rise."""
    if max(target.floor_share, simulated.floor_share) < HIDDEN:
        step = (simulated.median - target.median) / 255 * clip_db
    else:
        before = slopes.get(name)
        slope = SHARE_PER_DB
        if before and abs(noise - before[0]) > 0.1:
            slope = float(np.clip((simulated.floor_share - before[1]) / (noise - before[0]), 0.005, 0.1))
        step = (target.floor_share - simulated.floor_share) / slope
    slopes[name] = noise, simulated.floor_share
    return float(np.clip(step, -DB_STEP, DB_STEP))


def compare(measured: Measured, options: SimulateConfig, fit: Fit, rows: list[dict]) -> tuple[list[list[str]], dict]:
    """Return the table [what, measured, simulated, asked] with units, and the figures of `realism.compare`."""
    preset = preset_of(options, fit)
    # The radar and the picture.
    table = []
    for name, (words, unit) in AXIS.items():
        flag, said = getattr(options, name), measured.said[name]
        origin = f"--{name}" if flag else "the set" if said else "matched" if name in fit.sensor else "the preset"
        if name == "clip_db" and not flag and not said:
            origin = "assumed"
        here = f"{said:.4g} {unit}" if said else "not said"
        value = f"{float(preset.radar[name]):.4g} {unit}"
        table.append([words, here, value, f"{value} ({origin})"])
    height, width, channels = measured.images.original(0).shape
    size = f"{preset.size[0]} × {preset.size[1]}"
    origin = "--image_size" if options.image_size else "the set"
    table.append(["rows × columns", f"{height} × {width}", size, f"{size} ({origin})"])
    seen = " × ".join("as many" if side is None else str(side) for side in measured.native)
    native = f"{preset.sensor.rows} × {preset.sensor.columns}"
    table.append(["the same, before enlarging", seen, native, f"{native} (the set)"])
    here = fit.colormap or ("gray" if channels == 1 else "of no known map")
    colours, origin = _palette_of(options, fit), "--image_mode" if options.image_mode else "the set"
    table.append(["colours", here, colours, f"{options.image_mode or fit.image_mode} ({origin})"])

    # What the classes show.
    looks = {}
    for name in measured.looks:
        of_class = [row for row in rows if name in (STREAM, row["class"])]
        most = MOST_PER_CLASS * len({row["class"] for row in of_class})
        some = [of_class[i] for i in np.linspace(0, len(of_class) - 1, min(len(of_class), most)).astype(int).tolist()]
        pictures = (_picture(options.output_dir / row["file"]) for row in some)
        looks[name] = look(pictures, _groups(some), colours, _axes(preset))
        table += _rows_of_class(name, measured, looks[name], fit, of_class)

    # Texture.
    first, second = (np.concatenate([each.levels for each in of_set.values()]) for of_set in (measured.looks, looks))
    groups, others = (
        [f"{name} {group}" for name, each in of_set.items() for group in each.groups]
        for of_set in (measured.looks, looks)
    )
    figures = realism.compare(first, second, groups, others)
    for key, words in realism.STATISTICS.items():
        here, there = (f"{statistics[key]:.3g}" for statistics in figures["statistics"])
        table.append([words, here, there, ""])
    table.append(["Fréchet distance, random features", "0", f"{figures['frechet']:.3g}", ""])
    if figures["accuracy"] is not None:
        words = f"accuracy of a classifier that tells the two apart, {figures['windows']} windows each"
        table.append([words, "0.5: cannot tell", f"{figures['accuracy']:.2f}", ""])
    return table, {"realism": figures}


def _rows_of_class(name: str, measured: Measured, simulated: Look, fit: Fit, rows: list[dict]) -> list[list[str]]:
    """Return the rows of the table on one class: movements, noise, and the parameters that were asked for."""
    target, table = measured.looks[name], []
    knobs = {knob.figure: knob for knob in KNOBS[name]}
    for figure, unit in FIGURES.items():
        here, there = target.spreads[figure], simulated.spreads[figure]
        asked = "of the preset"
        if figure in knobs and here and there:
            asked = "; ".join(_asked(parameter, rows) for parameter in knobs[figure].parameters)
        table.append([f"{name}: {figure}, {unit}", str(here or "not seen"), str(there or "not seen"), asked])
    if name in fit.approaching:
        shares = [f"{each.approaching:.2f}" for each in (target, simulated)]
        table.append([f"{name}: share that approaches", *shares, f"{fit.approaching[name]:.2f}"])
    tops = [f"{each.top[0]:.0f} ± {each.top[1]:.0f}" for each in (target, simulated)]
    asked = "{:.1f} ± {:.1f} dB below 255".format(*fit.peak_db[name]) if name in fit.peak_db else "255 in each"
    table.append([f"{name}: highest level of a picture", *tops, asked])
    shares = [f"{each.floor_share:.2f}" for each in (target, simulated)]
    table.append([f"{name}: share of pixels at the floor", *shares, _asked("snr_db", rows)])
    return table


def _asked(parameter: str, rows: list[dict]) -> str:
    """Return the values of a parameter as text, and whether many of them lie at a bound."""
    values = np.array([row[parameter] for row in rows], float)
    bound = np.isin(values, BOUNDS[parameter]).mean() > 0.1
    return f"{parameter} {values.mean():.3g} ± {values.std():.2g}" + (" (at its bound)" if bound else "")


def _picture(path: Path) -> np.ndarray:
    picture = np.asarray(Image.open(path))
    return picture.reshape(*picture.shape[:2], -1)


def markdown(table: list[list[str]]) -> str:
    """Return the table as Markdown."""
    lines = ["| | measured | simulated | asked |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in table)]
    return "\n".join(lines) + "\n"
