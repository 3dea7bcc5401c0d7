"""Slow-time signal to picture: high-pass against clutter, short-time Fourier transform, decibels, clip."""

from __future__ import annotations

import functools

import numpy as np
from scipy import fft, signal

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
