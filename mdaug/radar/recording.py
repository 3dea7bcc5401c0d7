"""The data model of a raw recording: whatever the file, blocks of complex samples with named axes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mdaug.radar.sensor import SPEED_OF_LIGHT_M_S

AXES = ("frames", "pulses", "antennas", "samples", "ranges", "doppler", "iq")
"""Names of axes. Slow time is frames x pulses; fast time is samples of a sweep or ranges; iq holds I and Q."""
ALIASES = {"chirps": "pulses", "sweeps": "pulses"}
READ_WHOLE = 2 << 30  # bytes; formats that cannot be read in blocks may have as many


class Unreadable(Exception):
    """A file that cannot be made into pictures; the text says why."""


@dataclass(frozen=True)
class Radar:
    """What the user says of the radar and of the file; None leaves it to the file. Fields are those of the options."""

    carrier_hz: float | None = None
    prf_hz: float | None = None
    bandwidth_hz: float | None = None
    frame_s: float | None = None
    axes: tuple[str, ...] | None = None
    variable: str | None = None
    samples_per_chirp: int | None = None
    chirps_per_frame: int | None = None
    receivers: int | None = None
    transmitters: int | None = None
    lanes: Literal[2, 4] | None = None
    real_samples: bool | None = None
    flip_velocity: bool = False

    def over(self, header: Radar) -> Radar:
        """Return these numbers, and those of a file's header where nothing is said."""
        values = vars(header) | {name: value for name, value in vars(self).items() if value is not None}
        return Radar(**values)


@dataclass(frozen=True)
class Recording:
    """A recording of a coherent radar. Its samples stay in the file until `block` reads them."""

    array: Any
    """What is in the file: a numpy array, memory map or HDF5 dataset, sliced along `axes` before it is decoded."""
    axes: tuple[str, ...]
    """Names of the axes of the decoded array, of AXES; "" is an axis of length 1 without a meaning."""
    prf_hz: float | None = None
    """Pulses (sweeps) per second, within a frame."""
    carrier_hz: float | None = None
    """Carrier frequency."""
    frame_s: float | None = None
    """Time from one frame to the next."""
    range_step_m: float | None = None
    """Distance from one range to the next; None where that is unknown."""
    first_range_m: float = 0.0
    """Distance of the first range."""
    clockwise: bool = False
    """Whether an approaching target turns clockwise from pulse to pulse in the file; `block` mirrors it."""
    decode: Callable[[np.ndarray], np.ndarray] = lambda raw: raw
    """Makes numbers along `axes` of a slice of the array; the first axis of frames or pulses stays what it is."""
    layout: str = "array"
    """What the file was taken for."""
    notes: tuple[str, ...] = ()
    """What the user should know: what was left out, assumed or cannot be known."""

    def __post_init__(self) -> None:
        """Refuse axes that make no recording; raises Unreadable."""
        named = [axis for axis in self.axes if axis]
        if unknown := set(named) - set(AXES):
            raise Unreadable(f"has an axis '{min(unknown)}'; axes are {', '.join((*AXES, *ALIASES))}")
        if len(set(named)) < len(named):
            raise Unreadable(f"has axes {', '.join(named)}; each may be there only once")
        if "doppler" in named and "pulses" in named:
            raise Unreadable("has the axes pulses and doppler; a Doppler spectrum has taken the place of its pulses")
        if "doppler" in named and "frames" not in named:
            raise Unreadable("has the axis doppler but no frames; a spectrogram needs one spectrum after another")
        if "pulses" not in named and "frames" not in named:
            raise Unreadable(f"has axes {', '.join(named)}; pulses or frames are needed, which follow in time")
        if "samples" in named and "ranges" in named:
            raise Unreadable("has the axes samples and ranges; a Fourier transform makes one of the other")

    @property
    def wavelength_m(self) -> float:
        """Wavelength in m; raises Unreadable where the carrier is not known."""
        if self.carrier_hz is None:
            raise Unreadable("does not say its carrier; give --carrier_hz")
        return SPEED_OF_LIGHT_M_S / self.carrier_hz

    @property
    def units(self) -> int:
        """Number of frames, or of pulses where there are none: what `block` counts."""
        return self.array.shape[self._slow]

    @property
    def pulses_per_frame(self) -> int:
        """Pulses of a frame (Doppler bins, if it was transformed); 1 where pulses are not in frames."""
        return self._shape.get("doppler", self._shape.get("pulses", 1)) if "frames" in self.axes else 1

    @property
    def pulses(self) -> int:
        """Number of pulses in all."""
        return self.units * self.pulses_per_frame

    @property
    def ranges(self) -> int:
        """Number of ranges."""
        if "samples" in self.axes:
            return self._shape["samples"] // 2
        return self._shape.get("ranges", 1)

    @property
    def antennas(self) -> int:
        """Number of antennas, or of pairs of a transmitter and a receiver."""
        return self._shape.get("antennas", 1)

    @property
    def framed(self) -> bool:
        """Whether frames have to be transformed one by one: pauses lie between them, or they are spectra already."""
        if "doppler" in self.axes:
            return True
        if self.pulses_per_frame == 1 or self.units == 1:
            return False
        assert self.frame_s is not None
        assert self.prf_hz is not None
        return abs(self.frame_s * self.prf_hz - self.pulses_per_frame) > 0.5

    @property
    def duration_s(self) -> float:
        """Time from the first pulse to the end of the last; raises Unreadable where no rate is known."""
        if self.framed and self.frame_s is not None:
            return self.units * self.frame_s
        if self.prf_hz is None:
            raise Unreadable("does not say its pulses per second; give --prf_hz")
        return self.pulses / self.prf_hz

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Lengths of `axes`."""
        return tuple(self._shape[axis] if axis else 1 for axis in self.axes)

    @property
    def _slow(self) -> int:
        """The axis that is sliced."""
        return self.axes.index("frames" if "frames" in self.axes else "pulses")

    @functools.cached_property
    def _shape(self) -> dict[str, int]:
        """Length of each axis once decoded, found on one frame or pulse."""
        index = (slice(None),) * self._slow
        lengths = dict(zip(self.axes, self.decode(self.array[(*index, slice(0, 1))]).shape, strict=True))
        lengths[self.axes[self._slow]] = self.array.shape[self._slow]
        return lengths

    def rows(self, near_m: float, far_m: float) -> slice:
        """Return which ranges lie from `near_m` to `far_m`; Unreadable where none does."""
        if self.range_step_m is None:
            raise Unreadable(
                "range_m was given, but the ranges of the file are not known; give --bandwidth_hz, or leave it out"
            )
        step, start, ranges = self.range_step_m, self.first_range_m, self.ranges
        first, last = max(0, int(np.ceil((near_m - start) / step))), int(np.floor((far_m - start) / step))
        if first > min(last, ranges - 1):
            raise Unreadable(
                f"no range from {near_m:g} to {far_m:g} m: the file has every {step:.3g} m "
                f"from {start:.3g} up to {start + step * (ranges - 1):.3g} m"
            )
        return slice(first, last + 1)

    def raw(self, first: int, last: int) -> np.ndarray:
        """Return some of the numbers as they are in the file; `first` to `last` count what `block` counts."""
        return np.asarray(self.array[(*(slice(None),) * self._slow, slice(first, last))])

    def block(self, first: int, last: int) -> np.ndarray:
        """Return some of the samples; `first` to `last` count frames, or pulses where there are none.

        Returns:
            complex64 (frames, antennas, ranges, pulses), in which an approaching target turns counter-clockwise from
            pulse to pulse; float32 magnitudes (..., Doppler bins) where frames are spectra: velocity rises.

        Raises:
            Unreadable: numbers that are not finite in single precision, and magnitudes below 0.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            values = _complex(self.decode(self.raw(first, last)), self.axes)
            names = [axis for axis in self.axes if axis and axis != "iq"]
            spectra = "doppler" in names
            if spectra and values.dtype.kind != "c" and values.min() < 0:
                raise Unreadable("has negative magnitudes along doppler, perhaps decibels; give 10^(dB / 20)")
            values = np.abs(values).astype(np.float32) if spectra else values.astype(np.complex64)
        if not np.isfinite(values).all():
            raise Unreadable(f"holds samples that are not finite (between {first} and {last} of {self.units})")
        order = [
            next((name for name in choice if name in names), None)
            for choice in (("frames",), ("antennas",), ("samples", "ranges"), ("pulses", "doppler"))
        ]
        values = values.transpose([names.index(name) for name in order if name is not None])
        values = values[tuple(np.newaxis if name is None else slice(None) for name in order)]
        if "samples" in names:
            values = _range_profiles(values)
        if self.clockwise:
            # A spectrum of n bins begins at -n // 2; the mirror of that bin is beyond an even axis, so it stays.
            values = np.roll(values[..., ::-1], 1 - values.shape[-1] % 2, axis=-1) if spectra else values.conj()
        return values

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield all of `block`, about `size` samples at a time."""
        per_unit = self.antennas * max(1, self._shape.get("samples", self.ranges)) * self.pulses_per_frame
        step = max(1, size // per_unit)
        for first in range(0, self.units, step):
            yield self.block(first, min(first + step, self.units))


def checked(recording: Recording) -> Recording:
    """Return the recording if it is complete; Unreadable names what it holds too little of."""
    if 0 in recording.array.shape:
        raise Unreadable("holds no samples")
    for name, words in (("carrier_hz", "carrier"), ("prf_hz", "pulses per second")):
        if getattr(recording, name) is None:
            raise Unreadable(f"does not say its {words}; give --{name}")
    return recording


def described(recording: Recording, radar: Radar) -> Recording:
    """Return the recording with the numbers of `radar`, the header and the user together; Unreadable if they clash."""
    if 0 in recording.array.shape:
        raise Unreadable("holds no samples")
    step, prf, frame_s = recording.range_step_m, radar.prf_hz, radar.frame_s
    if radar.bandwidth_hz is not None:
        if recording.ranges < 1 or not {"samples", "ranges"} & set(recording.axes):
            raise Unreadable("bandwidth_hz was given, but there is one sample for each pulse; leave it out")
        step = SPEED_OF_LIGHT_M_S / (2 * radar.bandwidth_hz)
    in_frame = recording.pulses_per_frame
    if "frames" in recording.axes and recording.units > 1 and frame_s is None:
        hint = f"; {in_frame / prf:g} where they follow one another without a pause" if prf else ""
        raise Unreadable(f"has {recording.units} frames; give --frame_s, the time from one to the next{hint}")
    if frame_s and prf and "doppler" not in recording.axes and frame_s * prf < in_frame - 0.5:
        raise Unreadable(
            f"frame_s={frame_s:g} is shorter than its {in_frame} pulses at {prf:g} a second ({in_frame / prf:g} s)"
        )
    if in_frame == 1 and "frames" in recording.axes and frame_s and prf is None:
        prf = 1 / frame_s
    return dataclasses.replace(
        recording,
        prf_hz=prf,
        carrier_hz=radar.carrier_hz,
        frame_s=frame_s,
        range_step_m=step,
        clockwise=recording.clockwise ^ radar.flip_velocity,
    )


def _complex(values: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
    """Return values without the axis of I and Q, and without those that have no name."""
    if "iq" in axes:
        real, imaginary = np.moveaxis(values, axes.index("iq"), 0)
        values = real + 1j * imaginary.astype(np.float32 if real.dtype.itemsize < 4 else np.float64)
        axes = tuple(axis for axis in axes if axis != "iq")
    return values.reshape([length for length, axis in zip(values.shape, axes, strict=True) if axis])


def _range_profiles(sweeps: np.ndarray) -> np.ndarray:
    """Return (..., n // 2, pulses), the beat frequencies of sweeps (..., n, pulses) that stand for distances from 0 on.

    A target at distance R beats with 2 R B / c cycles a sweep (B: bandwidth), so a bin is c / 2B wide.
    """
    return np.fft.fft(sweeps, axis=-2)[..., : sweeps.shape[-2] // 2, :].astype(np.complex64)
