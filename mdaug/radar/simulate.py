"""`mdaug simulate`: a labelled folder of spectrograms from physics, with every parameter in metadata.csv."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from mdaug.radar import persons
from mdaug.radar.families import FAMILIES, plan
from mdaug.radar.picture import Picture, write_picture
from mdaug.radar.sensor import Sensor
from mdaug.radar.folder import finish, open_folder

DEFAULT_CLASSES = ["walking", "drone", "bird", "arm_swing", "fall", "sit_down"]


@dataclass
class SimulateConfig:
    """Make class-labelled micro-Doppler spectrograms from closed-form physics, as an image folder."""

    output_dir: Path
    """Folder to write root/<class>/*.png and metadata.csv into; the same command again goes on where it stopped."""
