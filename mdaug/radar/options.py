"""Options of `mdaug simulate` and `mdaug spectrogram`. Values and their checks, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

PLAUSIBLE = {
    "carrier_hz": (1e8, 3e11, "Hz"),
    "prf_hz": (10, 1e8, "pulses a second"),
    "bandwidth_hz": (1e5, 1e11, "Hz"),
    "frame_s": (1e-6, 60, "s"),
    "range_m": (0, 1e5, "m"),
    "v_max_m_s": (1e-3, 1e3, "m/s"),
    "window_s": (1e-6, 30, "s"),
    "hop_s": (1e-7, 30, "s"),
    "mti_cutoff_m_s": (1e-6, 1e2, "m/s"),
    "settle_s": (0, 300, "s"),
    "clip_db": (1, 200, "dB"),
    "duration_s": (1e-3, 86400, "s"),
}
"""Physical options: least and largest value, and the unit; wide enough for any radar of moving things."""
SOUND_HZ = 1e4, 1e6  # carriers of sonar, whose velocities need the speed of sound: not supported

IMAGE_SIZE = 256  # of simulate, where nothing else says so, as is the next
IMAGE_MODE: Literal["rgb", "gray"] = "rgb"
CLASSES = ("walking", "drone", "bird", "arm_swing", "fall", "sit_down", "stand_up")


def plausible(options: Any) -> None:
    """Refuse physical options out of the bounds of PLAUSIBLE, most likely given in another unit; None passes.

    Raises ValueError naming field, value, unit, what is accepted and the value that may have been meant.
    """
    for name, (low, high, unit) in PLAUSIBLE.items():
        value = getattr(options, name, None)
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None or low <= number <= high:
                continue
            meant = [number * factor for factor in (1e3, 1e6, 1e9, 1e-3, 1e-6) if low <= number * factor <= high]
            hint = ""
            if name == "carrier_hz" and number > 0:  # GHz are what carriers are given in
                meant = [number * 1e9] if low <= number * 1e9 <= high else meant
                if SOUND_HZ[0] <= number <= SOUND_HZ[1]:
                    hint, meant = " (sound is not supported: its velocities need the speed of sound)", []
            if number > 0 and meant:
                hint = f"; did you mean {meant[0]:g}?"
            raise ValueError(f"{name}={number:g} must lie between {low:g} and {high:g} {unit}{hint}")


@dataclass
class SimulateConfig:
    """Make class-labelled micro-Doppler spectrograms from closed-form physics, as an image folder.

    Numbers left out take the value of the set that --like names, or else of the preset. The same command again goes on
    where it was interrupted.
    """

    output_dir: Path = operational()
    """Folder for <class>/* and metadata.csv."""
    like: Path | None = operational(None)
    """Measured set, packed or an image folder, whose radar, noise and movements the pictures imitate, as far as the
    preset can. Only its training images are looked at."""
    like_classes: list[str] | None = None
    """With --like and the preset 'families', the class of the set that each of them imitates, such as
    [walking=walk,fall=falling]; without, the class of the same name, or all images."""
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
    image_size: int | None = None
    """Rows and columns, a multiple of 8: 256, or with --like those of the set."""
    image_mode: Literal["rgb", "gray"] | None = None
    """rgb: MATLAB's jet(256), or with --like the colour map of the set; gray: the levels themselves. rgb, or with
    --like that of the set."""
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
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used; raises ValueError naming field, value and what is accepted."""
        if self.preset != "families" and self.classes is not None:
            raise ValueError(f"classes={self.classes} needs preset=families; preset={self.preset} takes num_persons")
        one_of_each(self, CLASSES, "classes")
        self._check_likeness()
        at_least(self, 1, "num_persons", "images_per_class", "images_per_group")
        plausible(self)
        within(self, "[32, 4096]", "image_size")
        multiple_of(self, 8, "image_size")
        at_least(self, 0, "workers", "seed")
        if self.like is None:
            self.image_size, self.image_mode = self.image_size or IMAGE_SIZE, self.image_mode or IMAGE_MODE

    @property
    def imitated(self) -> dict[str, str]:
        """Class of the preset -> class of the set, of those that like_classes names."""
        pairs = (entry.partition("=") for entry in self.like_classes or ())
        return {name.strip(): other.strip() for name, _, other in pairs}

    def _check_likeness(self) -> None:
        if self.like_classes is None:
            return
        if self.like is None or self.preset != "families":
            raise ValueError(f"like_classes={self.like_classes} needs --like and preset=families")
        wrong = [name for name, other in self.imitated.items() if name not in (self.classes or CLASSES) or not other]
        if wrong or len(self.imitated) < len(self.like_classes) or not self.like_classes:
            raise ValueError(
                f"like_classes={self.like_classes} must hold pairs such as walking=walk, the first of each one of "
                f"{', '.join(self.classes or CLASSES)}, each only once"
            )


@dataclass
class SpectrogramConfig:
    """Make spectrograms of raw radar recordings, as an image folder that `mdaug pack` takes.

    Numbers left out take the value of the preset. The same command again goes on where it was interrupted.
    """

    data_dir: Path | None = operational(None)
    """Recordings <class>/* (glasgow: <campaign>/*.dat): .dat of Ancortek, .h5 of Acconeer, .bin of TI's DCA1000, I/Q in
    .wav or .sigmf-meta, arrays in .npy, .npz, .mat, .h5. Needed, unless --inspect is given."""
    output_dir: Path | None = operational(None)
    """Folder for <class>/*.png, metadata.csv and report.json; needed. With --inspect, where its picture goes: here."""
    inspect: Path | None = operational(None)
    """Only say what a reader sees in this file (axes, rate, carrier, duration), and draw a small picture of it."""
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
    frame_s: float | None = None
    """Time from one frame to the next in s; needed for arrays with frames. Where pauses lie between frames, each frame
    is one window and one column."""
    axes: str | None = None
    """Names of an array's axes, with commas: frames, pulses (or chirps), antennas, samples or ranges, doppler (spectra,
    zero in the middle), iq (I and Q). Such as pulses,ranges or frames,chirps,antennas,samples."""
    variable: str | None = None
    """Name (in .h5: path) of the array in files that hold several; of an Acconeer recording, its entry."""
    samples_per_chirp: int | None = None
    """Of a .bin of TI's DCA1000: samples of a chirp. This and the next five are not needed with a .mmwave.json."""
    chirps_per_frame: int | None = None
    """Of a .bin: chirps of a frame, of all transmitters together."""
    receivers: int | None = None
    """Of a .bin: receiving antennas that are on, 1 to 4."""
    transmitters: int | None = None
    """Of a .bin: transmitters that take turns, chirp by chirp: 1. prf_hz counts the chirps of one."""
    lanes: Literal[2, 4] | None = None
    """Of a .bin: LVDS lanes, 2 (xWR16xx, 18xx, 68xx; by default) or 4 (xWR12xx, 14xx)."""
    real_samples: bool | None = None
    """Of a .bin: samples are real instead of complex."""
    flip_velocity: bool = False
    """Turn pictures upside down: for files whose I and Q are swapped, or whose radar sweeps down."""
    follow_ranges: int | None = None
    """Only so many ranges to either side of the strongest one count, in each column anew; by default all."""
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
    verify: bool = operational(False)
    """Compare the hashes of all files of a finished folder, not their sizes alone; what was changed is made again."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used; raises ValueError naming field, value and what is accepted."""
        self.image_size = written(*height_width(self.image_size))
        plausible(self)
        at_least(self, 0, "workers", "follow_ranges")
        at_least(self, 1, "samples_per_chirp", "chirps_per_frame", "transmitters")
        within(self, "[1, 4]", "receivers")
        ascending(self, "range_m")
        within(self, "[0, 1)", "overlap")
        if self.inspect is not None:
            return
        for name in ("data_dir", "output_dir"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing: only --inspect FILE goes without")
        if self.preset == "generic" and self.v_max_m_s is None:
            raise ValueError("v_max_m_s is missing: preset=generic needs the velocity at the upper edge")
        if self.preset == "glasgow" and self.class_pattern is not None:
            raise ValueError(
                f"class_pattern={self.class_pattern} contradicts preset=glasgow, whose file names hold the classes"
            )
        one_capture_group(self, "class_pattern")
