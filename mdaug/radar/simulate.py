"""`mdaug simulate`: a labelled folder of spectrograms from physics, with every parameter in metadata.csv."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal

from mdaug.radar.image_folder import METADATA_FILE, open_folder, refuse_other, run_all, table, write_picture
from shards import atomic, provenance
from shards.progress import Progress

CLASSES = ("walking", "drone", "bird", "arm_swing", "fall", "sit_down", "stand_up")


@dataclass
class SimulateConfig:
    """Make class-labelled micro-Doppler spectrograms from closed-form physics, as an image folder.

    Numbers left out take the value of the preset. The same command again goes on where it was interrupted.
    """

    output_dir: Path
    """Folder for <class>/* and metadata.csv."""
    preset: Literal["families", "gait-persons"] = "families"
    """families: one class per kind of target; gait-persons: one class per walking person."""
    classes: list[str] | None = None
    """Of the preset 'families': walking, drone, bird, arm_swing, fall, sit_down (these by default), stand_up."""
    num_persons: int = 10
    """Classes ID_1, ID_2, ... of the preset 'gait-persons'."""
    images_per_class: int | None = None
    """Pictures of each class: 200 (families), 150 (gait-persons)."""
    images_per_group: int = 10
    """Pictures of the preset 'families' that show one and the same person, aircraft or bird."""
    image_size: int = 256
    """Rows and columns, a multiple of 8."""
    image_mode: Literal["rgb", "gray"] = "rgb"
    """rgb: MATLAB's jet(256); gray: the levels themselves."""
    carrier_hz: float | None = None
    """Carrier frequency in Hz: 24e9 (families), 77e9 (gait-persons)."""
    v_max_m_s: float | None = None
    """Velocity at the upper edge of the pictures in m/s: 6 (families), 5 (gait-persons)."""
    duration_s: float | None = None
    """Time that a picture spans in s: 3."""
    window_s: float | None = None
    """Window of the short-time Fourier transform in s: 0.05 (families), 0.12 (gait-persons)."""
    clip_db: float | None = None
    """Dynamic range in dB below the maximum of the picture: 45 (families), 40 (gait-persons)."""
    seed: int = 0
    """Same seed, same pictures, whatever the number of workers."""
    workers: int = 0
    """Processes; 0 takes one per core that this process may use."""

    def __post_init__(self) -> None:
        if self.preset != "families" and self.classes is not None:
            raise ValueError(f"classes is {self.classes} but preset is '{self.preset}'; give num_persons instead")
        if self.preset == "families":
            for name in self.classes or ():
                if name not in CLASSES:
                    raise ValueError(f"classes has '{name}'; accepted are {', '.join(CLASSES)}")
            if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
                raise ValueError(f"classes is {self.classes}; give at least one name, and each only once")
        for name in ("num_persons", "images_per_class", "images_per_group"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} is {number}; accepted are whole numbers from 1")
        for name in ("carrier_hz", "v_max_m_s", "duration_s", "window_s", "clip_db"):
            if (number := getattr(self, name)) is not None and not 0 < number < float("inf"):
                raise ValueError(f"{name} is {number}; accepted are numbers above 0")
        if not 32 <= self.image_size <= 4096 or self.image_size % 8:
            raise ValueError(f"image_size is {self.image_size}; accepted are multiples of 8 from 32 to 4096")
        if self.workers < 0 or self.seed < 0:
            raise ValueError(f"workers is {self.workers} and seed is {self.seed}; both must be 0 or more")

    def check_output(self, inputs_there: bool) -> None:
        """Raise UserError where output_dir holds something else."""
        refuse_other(self, "simulate")


def simulate(config: SimulateConfig) -> None:
    """Write the image folder, metadata.csv (one row per picture) and, last, provenance.json.

    A picture is a pure function of (seed, class, index) and of the preset's numbers, so an interrupted run goes
    on with the pictures that are missing and ends with the bytes that it would have had.

    Raises UserError for a folder that holds something else, and when the disk is full.
    """
    folder = config.output_dir
    jobs: list[list[dict]] = _preset(config).jobs(config)
    plain = open_folder(config, "simulate")
    rows = [row for job in jobs for row in job]
    missing = [job for job in jobs if not all((folder / row["file"]).is_file() for row in job)]
    if not missing and (folder / provenance.FILE_NAME).is_file():
        print(f"{folder} is finished: {len(rows)} pictures; nothing to do")
        return
    for name in dict.fromkeys(row["class"] for row in rows):
        (folder / name).mkdir(exist_ok=True)
    with Progress("simulating", sum(len(job) for job in missing), "image") as progress:
        for done in run_all(partial(make, config), missing, config.workers):
            progress.update(done)
    atomic.write_text(folder / METADATA_FILE, table(rows))
    content = provenance.hash_files([folder / METADATA_FILE, *(folder / row["file"] for row in rows)])
    provenance.write(folder, kind="image-folder", content_hash=content, made_from={}, config=plain)
    print(f"{folder}: {len(rows)} pictures of {len({row['class'] for row in rows})} classes")


def make(config: SimulateConfig, job: list[dict]) -> int:
    """Write the pictures of one job; return their number."""
    for row, data in _preset(config).render(config, job):
        write_picture(config.output_dir / row["file"], data)
    return len(job)


def _preset(config: SimulateConfig) -> ModuleType:
    """Return the module that knows the `jobs(config)` of a preset and how to `render(config, job)` them."""
    from mdaug.radar import families, persons

    return {"families": families, "gait-persons": persons}[config.preset]
