"""From echoes to a picture: the short-time Fourier transform of the simulator, and that of recordings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft, signal

from mdaug.radar.recording import Recording, Unreadable
from mdaug.radar.sensor import Sensor


def remove_clutter(samples: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return signals (..., settling + N) without their static part and without the settling time: (..., N)."""
    cutoff_hz = 2 * sensor.mti_cutoff_m_s / sensor.wavelength_m
    return high_pass(samples, cutoff_hz, sensor.prf_hz)[..., sensor.settling_samples :]


def high_pass(samples: np.ndarray, cutoff_hz: float, prf_hz: float) -> np.ndarray:
    """Return signals (..., N) without what moves slower: 4th-order Butterworth, causal, -3 dB at `cutoff_hz`.

    The filter starts in the steady state of the first sample, so a constant background leaves no transient; what is
    left of it passes in the settling time.
    """
    sections, steady_state = _high_pass(cutoff_hz, prf_hz)
    each = steady_state.reshape(len(sections), *[1] * (samples.ndim - 1), 2)
    filtered, _ = signal.sosfilt(sections, samples, zi=each * samples[..., :1])
    return filtered


@functools.lru_cache(maxsize=8)
def _high_pass(cutoff_hz: float, prf_hz: float) -> tuple[np.ndarray, np.ndarray]:
    sections = signal.butter(4, cutoff_hz, "highpass", fs=prf_hz, output="sos")
    return sections, signal.sosfilt_zi(sections)


def spectrogram(samples: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return the power (rows, columns) of a signal (N,) at the velocities `sensor.velocities_m_s`.

    Powers of several range gates, (gates, N), are summed.

    Windows start at equal steps from the first sample to the last that fits. The transform is long enough
    that each row holds a whole number of its bins, and a row is the mean power of them: no interpolation, and a
    small picture is the average of a large one rather than a selection from it. Bins lie at half-integer
    frequencies, so the axis is symmetric and a reversed motion gives exactly the flipped picture.
    """
    band = round(sensor.OVERSAMPLING * sensor.rows)  # bins over the whole sampled band, at one bin a row
    bins_per_row = -(-sensor.window_samples // band)
    length = band * bins_per_row
    n = np.arange(sensor.window_samples)
    window = signal.windows.hann(sensor.window_samples) * np.exp(-1j * np.pi * n / length)
    starts = np.linspace(0, samples.shape[-1] - sensor.window_samples, sensor.columns).round().astype(int)
    margin = (length - sensor.rows * bins_per_row) // 2
    power = np.zeros((sensor.columns, sensor.rows * bins_per_row))
    for gate in np.atleast_2d(samples):
        spectrum = fft.fftshift(fft.fft(gate[starts[:, None] + n] * window, length, axis=1), axes=1)
        power += np.abs(spectrum[:, margin : length - margin]) ** 2
    return power.reshape(sensor.columns, sensor.rows, bins_per_row).mean(axis=2).T[::-1]


def to_levels(power: np.ndarray, clip_db: float, peak_db: float = 0.0) -> np.ndarray:
    """Return power as uint8: 255 at `peak_db` above the maximum, 0 at `clip_db` (positive) below that and under."""
    decibel = 10 * np.log10(np.maximum(power / power.max(), 1e-30)) - peak_db
    return np.round(255 * np.clip(1 + decibel / clip_db, 0, 1)).astype(np.uint8)


PAD = 4  # length of the transform over length of the window
FRAME_POINTS = 128  # least length of the transform of a frame
BLOCK = 4096  # windows that are transformed at once
BLOCK_SAMPLES = 1 << 21  # of a recording that are in memory at once
BLOCK_AMPLITUDES = 1 << 23  # that are in memory at once: of one range, or of all where the strongest is followed
ROUNDING = 1e-7  # of a static echo: single precision leaves that much of it
SLOWEST = 1e-6  # cut-off over pulses per second; below, the coefficients of the high-pass lose their digits


@dataclass(frozen=True)
class Chain:
    """The numbers of the chain."""

    v_max_m_s: float
    """Velocities from -v_max (bottom) to +v_max (top); approaching is positive."""
    range_m: tuple[float, float] | None = None
    """Nearest and farthest range that count; None: all ranges."""
    window_s: float = 0.1
    """Length of the Hamming window."""
    hop_s: float = 0.01
    """From one column to the next."""
    mti_cutoff_m_s: float = 0.1
    """-3 dB point of the Butterworth high-pass against static clutter."""
    settle_s: float = 0.3
    """Left out at the beginning, while that filter settles."""
    clip_db: float = 40.0
    """Dynamic range below the maximum."""
    follow_ranges: int | None = None
    """Ranges to either side of the strongest one, column by column, that count; None: all."""


# The published numbers. Cut-offs are 3.75 Hz at 5.8 GHz and 5 Hz at 24 GHz; of CI4R the ranges are its bins 3 to 64 at
# 1.5 GHz, and what is left out at the beginning its first 20 columns.
PRESETS = {
    "glasgow": Chain(6.0, range_m=(1.5, 10.0), window_s=0.2, hop_s=0.01, mti_cutoff_m_s=0.097, settle_s=0.5),
    "ci4r24": Chain(4.0, range_m=(0.2, 6.4), window_s=0.2, hop_s=0.01, mti_cutoff_m_s=0.031, settle_s=0.2),
}


class Transform:
    """Amplitudes of a recording over velocity and time, block by block: memory does not grow with the recording.

    Pulses that follow one another are filtered and cut into overlapping windows. Where pauses lie between frames, each
    frame is a window and a column: its mean is removed, Hann, zero padding, power summed over ranges. Frames that are
    Doppler spectra already are taken as they are, without the velocities below the cut-off.

    Args:
        recording: carrier and rate are known.
        chain: of a framed recording, window_s, hop_s and settle_s are those of its frames; see the attribute.

    Raises:
        Unreadable: a recording that is too short, or whose pulses are too slow for the velocities.
    """

    def __init__(self, recording: Recording, chain: Chain):
        self.recording, self.chain = recording, chain
        prf = recording.prf_hz
        assert prf is not None
        highest_hz = 2 * chain.v_max_m_s / recording.wavelength_m
        if highest_hz > prf / 2 * (1 + 1e-9):
            raise Unreadable(
                f"{prf:g} pulses a second show velocities up to {prf * recording.wavelength_m / 4:.3g} m/s; give a "
                f"--v_max_m_s of at most that (it is {chain.v_max_m_s:g})"
            )
        self.cutoff_hz = 2 * chain.mti_cutoff_m_s / recording.wavelength_m
        self.ranges = slice(None) if chain.range_m is None else recording.rows(*chain.range_m)
        self.spectra = "doppler" in recording.axes
        if recording.framed:
            self._plan_frames(prf)
        else:
            self._plan_windows(prf)
        inside = np.flatnonzero(np.abs(self.frequencies) <= highest_hz)
        self.shown = inside[np.argsort(-self.frequencies[inside])]
        self.floor = 0.0
        """Amplitude of a column that rounding alone explains, as far as the recording was read."""

    def _plan_windows(self, prf: float) -> None:
        chain, pulses = self.chain, self.recording.pulses
        self.window, self.hop = round(chain.window_s * prf), round(chain.hop_s * prf)
        self.settle = round(chain.settle_s * prf)
        if self.window < 8 or self.hop < 1:
            raise Unreadable(
                f"at {prf:g} pulses a second window_s holds {self.window} pulses, hop_s {self.hop}; 8 and 1 are needed"
            )
        if pulses < self.settle + self.window:
            raise Unreadable(f"lasts {pulses / prf:.3g} s, less than settle_s + window_s")
        if not SLOWEST < self.cutoff_hz / prf < 0.5:
            raise Unreadable(
                f"mti_cutoff_m_s={chain.mti_cutoff_m_s:g} is {self.cutoff_hz:.3g} Hz at this carrier; between "
                f"{SLOWEST * prf:.3g} and {prf / 2:g} Hz can be cut off at {prf:g} pulses a second"
            )
        self.columns = (pulses - self.settle - self.window) // self.hop + 1
        self.hop_s = self.hop / prf
        self.taper = signal.windows.hamming(self.window, sym=False).astype(np.float32)
        self.length = fft.next_fast_len(PAD * self.window)
        self.frequencies = fft.fftfreq(self.length, 1 / prf)

    def _plan_frames(self, prf: float) -> None:
        self.window = self.recording.pulses_per_frame
        if self.window < 8:
            raise Unreadable(f"has {self.window} pulses a frame, with pauses between frames; 8 are needed")
        assert self.recording.frame_s is not None
        self.columns, self.hop_s = self.recording.units, self.recording.frame_s
        self.chain = dataclasses.replace(self.chain, window_s=self.window / prf, hop_s=self.hop_s, settle_s=0.0)
        self.taper = np.hanning(self.window)
        self.length = fft.next_fast_len(max(FRAME_POINTS, PAD * self.window))
        self.frequencies = fft.fftfreq(self.length, 1 / prf)
        if self.spectra:
            self.frequencies = (np.arange(self.window) - self.window // 2) * (prf / self.window)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield float32 (velocities, some columns) until all columns are there; Unreadable for what is not finite."""
        return self._frames() if self.recording.framed else self._windows()

    def _windows(self) -> Iterator[np.ndarray]:
        """Filter pulses and transform windows of them; what a window still needs is carried to the next block."""
        prf = self.recording.prf_hz
        assert prf is not None
        sections, steady_state = _high_pass(self.cutoff_hz, prf)
        state, peaks = None, 0.0
        waiting, skip = None, self.settle
        for block in self.recording.blocks(BLOCK_SAMPLES):
            block = block[:, :, self.ranges]
            pulses = block.transpose(1, 2, 0, 3).reshape(block.shape[1] * block.shape[2], -1)
            if state is None:
                state = steady_state[:, None] * pulses[:, :1]
            peaks = np.maximum(peaks, np.abs(pulses).max(axis=1))
            self.floor = ROUNDING * float(np.sum(peaks) * self.taper.sum())
            moving, state = signal.sosfilt(sections, pulses, zi=state)
            moving = moving.astype(np.complex64)
            waiting = moving if waiting is None else np.concatenate([waiting, moving], axis=1)
            left_out = min(skip, waiting.shape[1])
            waiting, skip = waiting[:, left_out:], skip - left_out
            columns = (waiting.shape[1] - self.window) // self.hop + 1
            if skip or columns < 1:
                continue
            held = self.length if self.chain.follow_ranges is None else len(waiting) * self.length
            step = max(1, min(BLOCK, BLOCK_AMPLITUDES // held))
            for start in range(0, columns, step):
                yield self._transformed(waiting, block.shape[1], start, min(start + step, columns))
            skip = max(0, columns * self.hop - waiting.shape[1])
            waiting = waiting[:, columns * self.hop :]

    def _transformed(self, moving: np.ndarray, antennas: int, first: int, last: int) -> np.ndarray:
        """Return the columns `first` to `last` of the signals (antennas x ranges, pulses), summed over them."""
        each = []
        total = np.zeros((len(self.shown), last - first), np.float32)
        for signal_of_range in moving:
            frames = sliding_window_view(signal_of_range, self.window)[:: self.hop][first:last]
            amplitudes = np.abs(fft.fft(frames * self.taper, self.length, axis=1)[:, self.shown]).T
            if self.chain.follow_ranges is None:
                total += amplitudes
            else:
                each.append(amplitudes)
        if not each:
            return total
        return self._followed(np.stack(each).reshape(antennas, -1, *total.shape)).sum(axis=(0, 1))

    def _frames(self) -> Iterator[np.ndarray]:
        """Transform frame by frame."""
        peaks = 0.0
        for block in self.recording.blocks(BLOCK_SAMPLES // 4):
            block = block[:, :, self.ranges]
            if self.spectra:
                amplitudes = np.where(np.abs(self.frequencies) < self.cutoff_hz, 0, block)[..., self.shown]
                self.floor = 0.0
            else:
                peaks = np.maximum(peaks, np.abs(block).max(axis=(0, 3)))
                self.floor = ROUNDING * float(np.sqrt(np.sum(np.square(peaks))) * self.taper.sum())
                pulses = block.astype(np.complex128)
                moving = (pulses - pulses.mean(axis=-1, keepdims=True)) * self.taper
                amplitudes = np.abs(fft.fft(moving, self.length, axis=-1)[..., self.shown])
            each = np.moveaxis(amplitudes, 0, -1)  # (antennas, ranges, velocities, frames)
            if self.chain.follow_ranges is not None:
                each = self._followed(each)
            yield np.sqrt(np.square(each).sum(axis=(0, 1))).astype(np.float32)

    def _followed(self, amplitudes: np.ndarray) -> np.ndarray:
        """Return amplitudes (antennas, ranges, velocities, columns), zero far from the strongest range of a column."""
        assert self.chain.follow_ranges is not None
        strongest = np.square(amplitudes).sum(axis=(0, 2)).argmax(axis=0)
        far = np.abs(np.arange(amplitudes.shape[1])[:, None] - strongest) > self.chain.follow_ranges
        return np.where(far[None, :, None], 0, amplitudes)


SILENT = "is silent: nothing moves in it, beyond what rounding explains"


def brightness(amplitudes: np.ndarray, clip_db: float, maximum: float) -> np.ndarray:
    """Return amplitudes as float32 from 0 (`clip_db` below `maximum`, and under) to 1 (`maximum`), in decibels."""
    decibel = 20 * np.log10(np.maximum(amplitudes / max(maximum, 1e-30), 1e-12))
    return np.clip(1 + decibel / clip_db, 0, 1).astype(np.float32)
