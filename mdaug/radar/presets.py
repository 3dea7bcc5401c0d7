"""The presets of `mdaug simulate`: which pictures there are, what each shows, and how it is drawn.

"families": one class per kind of target, all seen by one radar on one velocity axis. The axis is common so that a
classifier has to look at the motion: an axis of its own would name the class.

"gait-persons": walking people as classes, in the shape of data that radar groups bring. People walk to and fro before
a 77 GHz radar; windows of 3 s are cut with 75 % overlap from each straight walk; a picture has 57 columns of time, is
enlarged to full size by nearest neighbour and saved in jet as JPEG of quality 75. Neighbouring pictures show nearly the
same, so a split must keep the walks (column `group`) whole.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mdaug.radar import targets
from mdaug.radar.echo import receive
from mdaug.radar.fit import Fit
from mdaug.radar.image_folder import encode
from mdaug.radar.options import IMAGE_MODE, IMAGE_SIZE, SimulateConfig
from mdaug.radar.parameters import GROUP, IMAGE, NOISE, Draw
from mdaug.radar.people import moment, walking_echo, walking_group
from mdaug.radar.sensor import Sensor
from mdaug.radar.stft import remove_clutter, spectrogram, to_levels
from shards.errors import UserError

DEFAULT_CLASSES = ("walking", "drone", "bird", "arm_swing", "fall", "sit_down")
MOST_PULSES = 1_000_000  # of a picture; the presets take 7,205 and 19,264
NO_FIT = Fit()
PHYSICS = 3  # rises when the same options make other pictures; a folder of another one is refused

COLUMNS, ROWS = 57, 112
"""Of gait-persons: native columns and rows of a picture; a quarter of the columns from one picture to the next."""
STREAM = "gait-persons"
ROOM = {"floor_db": -12, "wall_db": -12, "left_m": 2.0, "right_m": 2.5}
"""Of gait-persons: all walk in one hall."""


class Preset(ABC):
    """The pictures of one run; numbers that the user left out take the value of the preset.

    Attributes:
        options: the user's.
        fit: what makes the pictures resemble those of a set.
        size: rows and columns of an image file.
        sensor: the radar, and the native size of a picture.
        clip_db: dynamic range of a picture.
        count: pictures of each class.
        radar: the columns of the metadata that describe the radar and the picture.
    """

    default_sensor: Sensor
    default_clip_db: float
    default_count: int

    def __init__(self, options: SimulateConfig, fit: Fit):
        self.options, self.fit = options, fit
        side = options.image_size or IMAGE_SIZE
        self.size = (fit.size if fit.size and not options.image_size else None) or (side, side)
        self.sensor = _with_numbers_of(options, dataclasses.replace(self.default_sensor, **fit.sensor))
        self.count = options.images_per_class or self.default_count
        names = ["carrier_hz", "v_max_m_s", "duration_s", "window_s", "mti_cutoff_m_s"]
        names += ["bandwidth_hz", "gates"] if self.sensor.bandwidth_hz else []
        self.radar = {name: getattr(self.sensor, name) for name in names}
        self.radar |= {
            "prf_hz": round(self.sensor.prf_hz, 3),
            "clip_db": options.clip_db or fit.clip_db or self.default_clip_db,
        }

    @abstractmethod
    def jobs(self) -> list[list[dict]]:
        """Return the metadata rows of all pictures, in the groups that are rendered together."""

    @abstractmethod
    def render(self, job: list[dict]) -> Iterator[tuple[dict, bytes]]:
        """Yield (row, bytes of the image file) of each picture of a job."""

    def encode(self, levels: np.ndarray, **options) -> bytes:
        """Return native levels as the bytes of an image file of full size."""
        height, width = self.size
        enlarged = np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST))
        colours = {"colours": self.fit.colormap} if self.fit.colormap else {}
        mode = self.options.image_mode or self.fit.image_mode or IMAGE_MODE
        return encode(enlarged, mode, **colours, **options)


class Families(Preset):
    """24 GHz, +-6 m/s, 3 s, windows of 50 ms; each picture is a job."""

    default_clip_db = 45.0
    default_count = 200

    def __init__(self, options: SimulateConfig, fit: Fit):
        side = options.image_size or IMAGE_SIZE
        self.default_sensor = Sensor(rows=side, columns=side)
        super().__init__(options, fit)

    def jobs(self) -> list[list[dict]]:
        """Return the metadata rows of all pictures, each in a job of its own."""
        per_group, seed = self.options.images_per_group, self.options.seed
        digits = len(str(self.count - 1)), len(str((self.count - 1) // per_group))
        jobs = []
        for name in self.options.classes or DEFAULT_CLASSES:
            for index in range(self.count):
                group = index // per_group
                in_group = f"{name}_g{group:0{digits[1]}d}"
                file = f"{name}/{in_group}_{index:0{digits[0]}d}.png"
                row = {"file": file, "class": name, "group": in_group, "index": index, "seed": seed}
                drawn = targets.draw(name, seed, group, index)
                jobs.append([row | self.radar | self.fit.apply(name, drawn, seed, index)])
        return jobs

    def render(self, job: list[dict]) -> Iterator[tuple[dict, bytes]]:
        """Yield (row, PNG) of the picture of a job."""
        for row in job:
            echo = targets.TARGETS[row["class"]].echo(row, self.sensor, self.sensor.time_s)
            noise = Draw.of(row["class"], row["seed"], NOISE, row["index"]).rng
            levels = to_levels(record(echo, row, self.sensor, noise), row["clip_db"], row.get("peak_db", 0.0))
            yield row, self.encode(levels, format="PNG")


class GaitPersons(Preset):
    """77 GHz, +-5 m/s, 3 s in 57 columns, five range bins of a sweep of 2 GHz; each straight walk is a job."""

    default_sensor = Sensor(
        carrier_hz=77e9,
        v_max_m_s=5.0,
        window_s=0.11,
        mti_cutoff_m_s=0.05,
        rows=ROWS,
        columns=COLUMNS,
        bandwidth_hz=2e9,
        gates=5,
    )
    default_clip_db = 40.0
    default_count = 150

    @property
    def step(self) -> int:
        """Columns from one picture to the next."""
        return self.sensor.columns // 4

    def jobs(self) -> list[list[dict]]:
        """Return the metadata rows, one job for each straight walk."""
        seed, columns, step = self.options.seed, self.sensor.columns, self.step
        column_s = (self.sensor.duration_s - self.sensor.window_s) / (columns - 1)
        jobs = []
        for person in range(1, self.options.num_persons + 1):
            of_person = Draw.of(STREAM, seed, GROUP, person)
            traits = walking_group(of_person) | _usual(of_person)
            missing, number, walk = self.count, 1, 0
            while missing > 0:
                of_walk = Draw.of(STREAM, seed, IMAGE, 1000 * person + walk)
                length = int(of_walk.rng.integers(6, 17))
                count = min(missing, length)
                lasts_s = (step * (length - 1) + columns) * column_s
                walked = _walk(of_walk, traits, walk, lasts_s)
                fitted = self.fit.apply(STREAM, traits | walked, seed, 1000 * person + walk)
                common = {
                    "class": f"ID_{person}",
                    "group": f"ID_{person}_walk{walk:02d}",
                    "person": person,
                    "walk": walk,
                    "seed": seed,
                    **self.radar,
                    **fitted,
                    # In the middle of the walk.
                    "distance_m": round(float(fitted["distance_m"]) + float(fitted["speed_m_s"]) * lasts_s / 2, 3),
                    **ROOM,
                }
                rows = []
                for window in range(count):
                    file = f"ID_{person}/ID{person}_case1_1_Doppler{number + window}.jpg"
                    start_s = round(window * step * column_s, 6)
                    rows.append({"file": file, **common, "window": window, "start_s": start_s})
                jobs.append(rows)
                missing -= count
                number += count + int(of_walk.rng.integers(3, 8))  # the pictures of the turn are left out
                walk += 1
        return jobs

    def render(self, job: list[dict]) -> Iterator[tuple[dict, bytes]]:
        """Yield (row, JPEG) of each window of a walk."""
        sensor, first = self.sensor, job[0]
        # The whole walk is one long spectrogram; its windows are cut from that.
        columns = sensor.columns + self.step * (len(job) - 1)
        duration_s = sensor.window_s + (sensor.duration_s - sensor.window_s) * (columns - 1) / (sensor.columns - 1)
        whole = dataclasses.replace(sensor, columns=columns, duration_s=duration_s)
        noise = Draw.of(STREAM, first["seed"], NOISE, 1000 * first["person"] + first["walk"]).rng
        power = record(walking_echo(first, whole, whole.time_s), first, whole, noise)
        for row in job:
            start = self.step * row["window"]
            window = power[:, start : start + sensor.columns]
            levels = to_levels(window, row["clip_db"], row.get("peak_db", 0.0))
            yield row, self.encode(levels, format="JPEG", quality=75)


PRESETS: dict[str, type[Preset]] = {"families": Families, "gait-persons": GaitPersons}


def preset_of(options: SimulateConfig, fit: Fit = NO_FIT) -> Preset:
    """Return the preset that the options name, with their numbers and those of a fit."""
    return PRESETS[options.preset](options, fit)


def record(echo: np.ndarray, row: dict, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    """Return the power (rows, columns) of an echo, received with the noise and clutter that its row names."""
    names = ("snr_db", "clutter_to_signal_db", "iq_image_db")
    samples = receive(echo, sensor.prf_hz, rng, **{name: row[name] for name in names})
    return spectrogram(remove_clutter(samples, sensor), sensor)


def _with_numbers_of(options: SimulateConfig, preset: Sensor) -> Sensor:
    """Return the sensor of a preset with the numbers that the user gave instead.

    Raises UserError for more pulses than the memory holds, and for a window that does not fit them.
    """
    given = {name: getattr(options, name) for name in ("carrier_hz", "v_max_m_s", "duration_s", "window_s")}
    sensor = dataclasses.replace(preset, **{name: value for name, value in given.items() if value is not None})
    pulses = round(sensor.duration_s * sensor.prf_hz)
    if pulses > MOST_PULSES:
        raise UserError(
            f"duration_s={sensor.duration_s:g} with v_max_m_s={sensor.v_max_m_s:g} at carrier_hz={sensor.carrier_hz:g} "
            f"takes {pulses:.3g} pulses a picture; it must be at most {MOST_PULSES:,}"
        )
    if not 8 <= sensor.window_samples <= pulses:
        raise UserError(
            f"window_s={sensor.window_s:g} takes {sensor.window_samples} pulses at {sensor.prf_hz:.0f} Hz; "
            f"it must take at least 8 and at most the {pulses} of duration_s"
        )
    return sensor


def _usual(draw: Draw) -> dict:
    """Return how a person walks in a hall; what is longer in a cycle of the same speed is the step.

    Asked to walk normally, people walk at nearly the same speed: it must not give them away.
    """
    cycle_scale = draw.normal(1.17, 0.03)
    return {
        "usual_speed_m_s": draw.normal(1.25, 0.08),
        "cycle_scale": cycle_scale,
        "hip_scale": draw.normal(cycle_scale - 0.05, 0.05),
        "knee_scale": draw.normal(1.1, 0.06),
        "shoulder_scale": draw.uniform(0.8, 2.0),
        "asymmetry": draw.normal(0, 0.08),
    }


def _walk(draw: Draw, person: dict, walk: int, lasts_s: float) -> dict:
    """Return what is particular to one walk: people repeat themselves, but not exactly. The distance is the nearest."""
    nearest_m, speed_m_s = draw.uniform(3.5, 7.5), draw.normal(float(person["usual_speed_m_s"]), 0.04)

    def near(name: str, spread: float) -> float:
        return draw.normal(float(person[name]), spread)

    return {
        "speed_m_s": speed_m_s,
        "phase": draw.uniform(0, 1),
        "hip_scale": near("hip_scale", 0.012),
        "knee_scale": near("knee_scale", 0.012),
        "shoulder_scale": near("shoulder_scale", 0.04),
        "elbow_scale": near("elbow_scale", 0.03),
        "wander": draw.uniform(0, 0.015),
        "wander_hz": draw.uniform(0.1, 0.3),
        "lasts_s": round(lasts_s, 3),
        "ramp_s": draw.uniform(1, 2),
        "slowest": draw.uniform(0.35, 0.65),
        "distance_m": nearest_m,
        "aspect_deg": 180 * (walk % 2) + draw.uniform(-8, 8),
        **moment(draw),
        "snr_db": draw.uniform(26, 38),
        "clutter_to_signal_db": draw.uniform(20, 40),
        "iq_image_db": draw.uniform(-29, -23),
    }
