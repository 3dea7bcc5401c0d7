"""A recording to velocity over time: ranges, high-pass against clutter, short-time Fourier transform, decibels.

The chain is the one published with the Glasgow recordings (doi:10.5525/gla.researchdata.848) and used for the
Ancortek radar of CI4R; ranges are chosen in metres, since bandwidths differ within a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft, signal

from mdaug.radar.recordings import Recording, Unreadable
from mdaug.radar.spectrogram import high_pass

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
