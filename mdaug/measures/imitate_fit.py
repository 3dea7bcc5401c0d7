"""The fit of the simulator to a set, for `mdaug simulate --like`: what is matched, and how it is approached.

A few small simulated batches are measured exactly as the set is, and the simulator's draws are stretched until the
figures agree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np

from mdaug.measures.imitate_look import Look, Measured, Spread, look
from mdaug.measures.kinematics import Axes
from mdaug.measures.levels import GRAY
from mdaug.radar.fit import BOUNDS, USUAL, Fit, Stretch
from mdaug.radar.options import SimulateConfig
from mdaug.radar.presets import STREAM, Preset, preset_of
from mdaug.radar.simulate import draw_pictures
from shards.pool import Pool

ROUNDS, BATCH, PER_GROUP = 5, 40, 2  # simulated batches; pictures of each class in one, and of a person
WALKS, WALK_PICTURES = 10, 12  # of gait-persons: people, and the pictures of each, of a walk or two
HIDDEN = 0.05  # share of pixels at the floor, below which the noise stands above it
DB_STEP, SHARE_PER_DB = 8.0, 0.02  # largest change of the noise in a round; what a dB hides before a slope is known


@dataclass(frozen=True)
class Knob:
    """A figure of the pictures, and the parameters that move it.

    Attributes:
        figure: see `imitate_look.FIGURES`.
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
                looks[name] = look(pictures, groups_of(_rows(preset)), palette_of(options, fit), axes_of(preset))
            distance = sum(_distance(name, measured.looks[name], looks[name]) for name in looks)
            print(f"matching: batch {number + 1} of {ROUNDS}, {distance:.3f} from the set", flush=True)
            if distance < least:
                best, least = fit, distance
            fit = _nearer(fit, measured, options, looks, raw, slopes)
    print(f"matching: the nearest batch is taken, {least:.3f} from the set", flush=True)
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


def groups_of(rows: list[dict]) -> list[str]:
    """Return the person of each picture, or the group where that is one."""
    return [str(row.get("person", row["group"])) for row in rows]


def axes_of(preset: Preset) -> Axes:
    """Return what rows, columns and levels of simulated pictures mean."""
    sensor = preset.sensor
    return Axes(sensor.v_max_m_s, sensor.duration_s - sensor.window_s, float(preset.radar["clip_db"]), physical=True)


def palette_of(options: SimulateConfig, fit: Fit) -> str:
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
