"""Options of `mdaug simulate` and `mdaug spectrogram`. Values and their checks, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.validation import (
    ascending,
    at_least,
    height_width,
    multiple_of,
    one_capture_group,
    one_of_each,
    operational,
    within,
    written,
)

CLASSES = ("walking", "drone", "bird", "arm_swing", "fall", "sit_down", "stand_up")


@dataclass
class SimulateConfig:
    """Make class-labelled micro-Doppler spectrograms from closed-form physics, as an image folder.

    Numbers left out take the value of the preset. The same command again goes on where it was interrupted.
    """

    output_dir: Path = operational()
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
    workers: int = operational(0)
    """Processes; 0 takes one per core that this process may use."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used; raises ValueError naming field, value and what is accepted."""
        if self.preset != "families" and self.classes is not None:
            raise ValueError(f"classes={self.classes} needs preset=families; preset={self.preset} takes num_persons")
        one_of_each(self, CLASSES, "classes")
        at_least(self, 1, "num_persons", "images_per_class", "images_per_group")
        within(self, "(0, inf)", "carrier_hz", "v_max_m_s", "duration_s", "window_s", "clip_db")
        within(self, "[32, 4096]", "image_size")
        multiple_of(self, 8, "image_size")
        at_least(self, 0, "workers", "seed")


@dataclass
class SpectrogramConfig:
    """Make spectrograms of raw radar recordings, as an image folder that `mdaug pack` takes.

    Numbers left out take the value of the preset. The same command again goes on where it was interrupted.
    """

    data_dir: Path = operational()
    """Recordings <class>/*.dat|mat|npy (glasgow: <campaign>/*.dat): text of Ancortek radars, or complex arrays of
    (pulses,) or (ranges, pulses), real ones of (pulses, 2)."""
    output_dir: Path = operational()
    """Folder for <class>/*.png, metadata.csv and report.json."""
    preset: Literal["generic", "glasgow", "ci4r24"] = "generic"
    """glasgow: doi:10.5525/gla.researchdata.848, classes and persons from the file names; ci4r24: the 24 GHz radar of
    CI4R; generic: any other."""
    class_pattern: str | None = None
    """Regular expression with one capture group that finds the class in the path; by default the first folder."""
    carrier_hz: float | None = None
    """Carrier frequency in Hz; needed where files have no header."""
    prf_hz: float | None = None
    """Pulses or sweeps per second; needed where files have no header."""
    bandwidth_hz: float | None = None
    """Of an FMCW radar, in Hz: rows of an array are then the samples of a sweep, and a Fourier transform makes ranges
    of them. Without it rows are ranges already."""
    variable: str | None = None
    """Name of the array in .mat files that hold several."""
    range_m: tuple[float, float] | None = None
    """Nearest and farthest range in m that count; by default all (glasgow: 1.5, 10; ci4r24: 0.2, 6.4)."""
    v_max_m_s: float | None = None
    """Velocity at the upper edge of the pictures in m/s; needed for generic (glasgow: 6, ci4r24: 4)."""
    window_s: float | None = None
    """Hamming window of the short-time Fourier transform in s: 0.1 (glasgow, ci4r24: 0.2)."""
    hop_s: float | None = None
    """Time from one column to the next in s: 0.01."""
    mti_cutoff_m_s: float | None = None
    """Velocity in m/s below which the high-pass removes movement as clutter: 0.1 (glasgow: 0.097, ci4r24: 0.031)."""
    settle_s: float | None = None
    """Left out at the beginning in s, while the high-pass settles: 0.3 (glasgow: 0.5, ci4r24: 0.2)."""
    clip_db: float | None = None
    """Dynamic range in dB below the maximum: 40."""
    reference: Literal["picture", "recording"] = "picture"
    """Where that maximum is taken. picture: a target that moves away stays bright; recording: it fades, and windows in
    which nothing happens stay dark instead of showing their noise."""
    duration_s: float | None = None
    """Time that a picture spans in s; by default all of a recording, as one picture."""
    overlap: float = 0.75
    """Share of a picture that the next one shows again, where duration_s cuts several from a recording; in [0, 1)."""
    image_size: int | str = 256
    """Pixels: one number for squares, or height x width such as 128x256."""
    image_mode: Literal["gray", "rgb"] = "gray"
    """gray: the levels; rgb: MATLAB's jet(256)."""
    workers: int = operational(0)
    """Processes; 0 takes one per core that this process may use."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used; raises ValueError naming field, value and what is accepted."""
        self.data_dir, self.output_dir = Path(self.data_dir), Path(self.output_dir)
        self.image_size = written(*height_width(self.image_size))
        within(self, "(0, inf)", "carrier_hz", "prf_hz", "bandwidth_hz", "v_max_m_s", "window_s", "hop_s")
        within(self, "(0, inf)", "mti_cutoff_m_s", "clip_db", "duration_s")
        at_least(self, 0, "settle_s", "range_m", "workers")
        ascending(self, "range_m")
        within(self, "[0, 1)", "overlap")
        if self.preset == "generic" and self.v_max_m_s is None:
            raise ValueError("v_max_m_s is missing: preset=generic needs the velocity at the upper edge")
        if self.preset == "glasgow" and self.class_pattern is not None:
            raise ValueError(
                f"class_pattern={self.class_pattern} contradicts preset=glasgow, whose file names hold the classes"
            )
        one_capture_group(self, "class_pattern")
