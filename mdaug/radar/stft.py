"""From echoes to a picture: the short-time Fourier transform of the simulator, and that of recordings."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft, signal

from mdaug.radar.recordings import Recording, Unreadable
from mdaug.radar.sensor import Sensor


def remove_clutter(samples: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return the signal (settling + N,) without its static part and without the settling time: (N,)."""
    cutoff_hz = 2 * sensor.mti_cutoff_m_s / sensor.wavelength_m
    return high_pass(samples[None], cutoff_hz, sensor.prf_hz)[0, sensor.settling_samples :]


def high_pass(samples: np.ndarray, cutoff_hz: float, prf_hz: float) -> np.ndarray:
    """Return signals (K, N) without what moves slower: 4th-order Butterworth, causal, -3 dB at `cutoff_hz`.

    The filter starts in the steady state of the first sample, so a constant background leaves no transient; what is
    left of it passes in the settling time.
    """
    sections, steady_state = _high_pass(cutoff_hz, prf_hz)
    filtered, _ = signal.sosfilt(sections, samples, zi=steady_state[:, None] * samples[:, :1])
    return filtered


@functools.lru_cache(maxsize=8)
def _high_pass(cutoff_hz: float, prf_hz: float) -> tuple[np.ndarray, np.ndarray]:
    sections = signal.butter(4, cutoff_hz, "highpass", fs=prf_hz, output="sos")
    return sections, signal.sosfilt_zi(sections)


def spectrogram(samples: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return the power (rows, columns) of a signal (N,) at the velocities `sensor.velocities_m_s`.

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
    starts = np.linspace(0, len(samples) - sensor.window_samples, sensor.columns).round().astype(int)
    spectrum = fft.fftshift(fft.fft(samples[starts[:, None] + n] * window, length, axis=1), axes=1)
    margin = (length - sensor.rows * bins_per_row) // 2
    power = np.abs(spectrum[:, margin : length - margin]) ** 2
    return power.reshape(sensor.columns, sensor.rows, bins_per_row).mean(axis=2).T[::-1]


def to_levels(power: np.ndarray, clip_db: float) -> np.ndarray:
    """Return power as uint8: 255 at the maximum, 0 at `clip_db` (positive) below it and under."""
    decibel = 10 * np.log10(np.maximum(power / power.max(), 1e-30))
    return np.round(255 * np.clip(1 + decibel / clip_db, 0, 1)).astype(np.uint8)


PAD = 4  # length of the transform over length of the window
BLOCK = 4096  # windows that are transformed at once


@dataclass(frozen=True)
class Chain:
    """The numbers of the chain."""

    v_max_m_s: float
    """Velocities from -v_max (bottom) to +v_max (top); approaching is positive."""
    range_m: tuple[float, float] | None = None
    """Nearest and farthest range that count; None: all rows."""
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


# The published numbers. Cut-offs are 3.75 Hz at 5.8 GHz and 5 Hz at 24 GHz; of CI4R the ranges are its bins 3 to 64 at
# 1.5 GHz, and what is left out at the beginning its first 20 columns.
PRESETS = {
    "glasgow": Chain(6.0, range_m=(1.5, 10.0), window_s=0.2, hop_s=0.01, mti_cutoff_m_s=0.097, settle_s=0.5),
    "ci4r24": Chain(4.0, range_m=(0.2, 6.4), window_s=0.2, hop_s=0.01, mti_cutoff_m_s=0.031, settle_s=0.2),
}


def velocity_over_time(recording: Recording, chain: Chain) -> np.ndarray:
    """Return amplitudes (velocities, columns), float32, summed over ranges without their phases.

    Column k begins `settle_s + k hop_s` after the recording. Raises Unreadable for a recording that is too short or
    silent, or whose pulses are too slow for the velocities.
    """
    prf, highest_hz = recording.prf_hz, 2 * chain.v_max_m_s / recording.wavelength_m
    if highest_hz > prf / 2:
        raise Unreadable(
            f"{prf:g} pulses a second show velocities up to {prf * recording.wavelength_m / 4:.3g} m/s; give a "
            f"--v_max_m_s of at most that (it is {chain.v_max_m_s:g})"
        )
    window, hop, settle = round(chain.window_s * prf), round(chain.hop_s * prf), round(chain.settle_s * prf)
    if window < 8 or hop < 1:
        raise Unreadable(f"at {prf:g} pulses a second window_s holds {window} pulses, hop_s {hop}; 8 and 1 are needed")
    rows = recording.samples if chain.range_m is None else recording.between(*chain.range_m)
    if rows.shape[1] < settle + window:
        raise Unreadable(f"lasts {rows.shape[1] / prf:.3g} s, less than settle_s + window_s")
    length = fft.next_fast_len(PAD * window)
    frequencies = fft.fftfreq(length, 1 / prf)
    shown = np.flatnonzero(np.abs(frequencies) <= highest_hz)
    shown = shown[np.argsort(-frequencies[shown])]
    moving = high_pass(rows, 2 * chain.mti_cutoff_m_s / recording.wavelength_m, prf)[:, settle:]
    taper = signal.windows.hamming(window, sym=False).astype(np.float32)
    total = np.zeros((len(shown), (moving.shape[1] - window) // hop + 1), np.float32)
    for signal_of_range in moving.astype(np.complex64):
        frames = sliding_window_view(signal_of_range, window)[::hop]
        for start in range(0, len(frames), BLOCK):
            spectrum = fft.fft(frames[start : start + BLOCK] * taper, length, axis=1)
            total[:, start : start + BLOCK] += np.abs(spectrum[:, shown]).T
    if total.max() == 0:
        raise Unreadable("is silent: nothing moves in it")
    return total


def brightness(amplitudes: np.ndarray, clip_db: float, maximum: float) -> np.ndarray:
    """Return amplitudes as float32 from 0 (`clip_db` below `maximum`, and under) to 1 (`maximum`), in decibels."""
    decibel = 20 * np.log10(np.maximum(amplitudes / max(maximum, 1e-30), 1e-12))
    return np.clip(1 + decibel / clip_db, 0, 1).astype(np.float32)
