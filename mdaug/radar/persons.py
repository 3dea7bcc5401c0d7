"""Preset "gait-persons": walking people as classes, in the shape of data that radar groups bring.

People walk to and fro before a 77 GHz radar; windows of 3 s are cut with 75 % overlap from each straight walk; a
picture has 57 columns of time, is enlarged to full size by nearest neighbour and saved in jet as JPEG of quality 75.
Neighbouring pictures show nearly the same, so a split must keep the walks (column `group`) whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mdaug.radar.options import SimulateConfig
from mdaug.radar.parameters import GROUP, IMAGE, NOISE, Draw
from mdaug.radar.people import walking_echo, walking_group
from mdaug.radar.picture import encode, record, sensor_columns, sensor_of
from mdaug.radar.sensor import Sensor
from mdaug.radar.stft import to_levels

IMAGES_PER_CLASS = 150
CLIP_DB = 40.0
COLUMNS, ROWS, STEP = 57, 112, 14
"""Native columns and rows of a picture, and columns from one picture to the next: a quarter."""
STREAM = "gait-persons"


def sensor(config: SimulateConfig) -> Sensor:
    """Return the radar of one picture: 77 GHz, +-5 m/s, 3 s in 57 columns, unless the user says otherwise."""
    own = Sensor(carrier_hz=77e9, v_max_m_s=5.0, window_s=0.12, rows=ROWS, columns=COLUMNS)
    return sensor_of(config, own)


def jobs(config: SimulateConfig) -> list[list[dict]]:
    """Return the metadata rows, one job for each straight walk."""
    picture = sensor(config)
    radar = sensor_columns(picture, config.clip_db or CLIP_DB)
    column_s = (picture.duration_s - picture.window_s) / (COLUMNS - 1)
    walks = []
    for person in range(1, config.num_persons + 1):
        of_person = Draw.of(STREAM, config.seed, GROUP, person)
        # Asked to walk normally, people walk at nearly the same speed: it must not give them away.
        traits = walking_group(of_person) | {"usual_speed_m_s": of_person.normal(1.2, 0.08)}
        missing = config.images_per_class or IMAGES_PER_CLASS
        number, walk = 1, 0
        while missing > 0:
            of_walk = Draw.of(STREAM, config.seed, IMAGE, 1000 * person + walk)
            length = int(of_walk.rng.integers(6, 17))
            count = min(missing, length)
            common = {
                "class": f"ID_{person}",
                "group": f"ID_{person}_walk{walk:02d}",
                "person": person,
                "walk": walk,
                "seed": config.seed,
                **radar,
                **traits,
                **_walk(of_walk, traits, walk, (STEP * (length - 1) + COLUMNS) * column_s),
            }
            rows = []
            for window in range(count):
                name = f"ID{person}_case1_1_Doppler{number + window}.jpg"
                start_s = round(window * STEP * column_s, 6)
                rows.append({"file": f"ID_{person}/{name}", **common, "window": window, "start_s": start_s})
            walks.append(rows)
            missing -= count
            number += count + int(of_walk.rng.integers(3, 8))  # the pictures of the turn are left out
            walk += 1
    return walks


def render(config: SimulateConfig, job: list[dict]) -> Iterator[tuple[dict, bytes]]:
    """Yield (row, JPEG) of each window of a walk."""
    picture, first = sensor(config), job[0]
    columns = COLUMNS + STEP * (len(job) - 1)
    duration_s = picture.window_s + (picture.duration_s - picture.window_s) * (columns - 1) / (COLUMNS - 1)
    whole = dataclasses.replace(picture, columns=columns, duration_s=duration_s)
    noise = Draw.of(STREAM, first["seed"], NOISE, 1000 * first["person"] + first["walk"]).rng
    power = record(walking_echo(first, whole, whole.time_s), first, whole, noise)
    size = (config.image_size, config.image_size)
    for row in job:
        start = STEP * row["window"]
        levels = to_levels(power[:, start : start + COLUMNS], row["clip_db"])
        enlarged = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.NEAREST))
        yield row, encode(enlarged, config.image_mode, format="JPEG", quality=75)


def _walk(draw: Draw, person: dict, walk: int, lasts_s: float) -> dict:
    """Return what is particular to one walk: people repeat themselves, but not exactly."""
    nearest_m, speed_m_s = draw.uniform(6, 10), draw.normal(float(person["usual_speed_m_s"]), 0.04)

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
        "distance_m": round(nearest_m + speed_m_s * lasts_s / 2, 3),  # in the middle of the walk
        "aspect_deg": 180 * (walk % 2) + draw.uniform(-8, 8),
        "snr_db": draw.uniform(26, 38),
        "clutter_to_signal_db": draw.uniform(20, 40),
        "iq_image_db": draw.uniform(-50, -35),
    }
