"""Preset "families": one class per kind of target, all seen by one radar on one velocity axis.

The axis is common so that a classifier has to look at the motion: an axis of its own would name the class.
"""

from __future__ import annotations

from collections.abc import Iterator

from mdaug.radar import targets
from mdaug.radar.options import SimulateConfig
from mdaug.radar.parameters import NOISE, Draw
from mdaug.radar.picture import encode, record, sensor_columns, sensor_of
from mdaug.radar.sensor import Sensor
from mdaug.radar.stft import to_levels

DEFAULT_CLASSES = ("walking", "drone", "bird", "arm_swing", "fall", "sit_down")
IMAGES_PER_CLASS = 200
CLIP_DB = 45.0


def sensor(config: SimulateConfig) -> Sensor:
    """Return the radar: 24 GHz, +-6 m/s, 3 s, windows of 50 ms, unless the user says otherwise."""
    return sensor_of(config, Sensor(rows=config.image_size, columns=config.image_size))


def jobs(config: SimulateConfig) -> list[list[dict]]:
    """Return the metadata rows of all pictures, each in a job of its own."""
    radar = sensor_columns(sensor(config), config.clip_db or CLIP_DB)
    count = config.images_per_class or IMAGES_PER_CLASS
    digits = len(str(count - 1)), len(str((count - 1) // config.images_per_group))
    rows = []
    for name in config.classes or DEFAULT_CLASSES:
        for index in range(count):
            group = index // config.images_per_group
            in_group = f"{name}_g{group:0{digits[1]}d}"
            row = {
                "file": f"{name}/{in_group}_{index:0{digits[0]}d}.png",
                "class": name,
                "group": in_group,
                "index": index,
                "seed": config.seed,
            }
            rows.append([row | radar | targets.draw(name, config.seed, group, index)])
    return rows


def render(config: SimulateConfig, job: list[dict]) -> Iterator[tuple[dict, bytes]]:
    """Yield (row, PNG) of each picture of a job."""
    radar = sensor(config)
    for row in job:
        echo = targets.TARGETS[row["class"]].echo(row, radar, radar.time_s)
        noise = Draw.of(row["class"], row["seed"], NOISE, row["index"]).rng
        yield row, encode(to_levels(record(echo, row, radar, noise), row["clip_db"]), config.image_mode, format="PNG")
