"""The one radar of a data set: carrier, sampling and the velocity axis that all its pictures share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SPEED_OF_LIGHT_M_S = 299_792_458.0


@dataclass(frozen=True)
class Sensor:
    """A coherent monostatic radar (slow time only) and the spectrogram that is made of its signal.

    The pulse repetition frequency follows from the axis: a quarter more than +-v_max needs, so that what lies
    just outside the picture does not fold into it.
    """

    carrier_hz: float = 24e9
    v_max_m_s: float = 6.0
    """The picture spans radial velocities from -v_max (bottom) to +v_max (top); approaching is positive."""
    duration_s: float = 3.0
    """From the first sample of the first window to the last sample of the last one."""
    window_s: float = 0.05
    """Length of the Hann window of the short-time Fourier transform."""
    mti_cutoff_m_s: float = 0.1
    """-3 dB point of the Butterworth high-pass against static clutter."""
    settling_s: float = 0.3
    """Time recorded before the picture begins, for that filter to settle."""
    rows: int = 256
    columns: int = 256
    bandwidth_hz: float | None = None
    """Of a sweep; None: continuous wave, which sees all ranges at once."""
    gates: int = 1
    """Range bins around the target whose powers are summed."""

    OVERSAMPLING = 1.25
    """Sampled velocity band over displayed velocity band."""

    @cached_property
    def wavelength_m(self) -> float:
        """Wavelength in m."""
        return SPEED_OF_LIGHT_M_S / self.carrier_hz

    @cached_property
    def range_bin_m(self) -> float | None:
        """Distance of range bins in m, c / 2 B; None for continuous wave."""
        return None if self.bandwidth_hz is None else SPEED_OF_LIGHT_M_S / (2 * self.bandwidth_hz)

    @cached_property
    def prf_hz(self) -> float:
        """Pulse repetition frequency in Hz: 4 v_max / lambda, times the oversampling."""
        return self.OVERSAMPLING * 4 * self.v_max_m_s / self.wavelength_m

    @cached_property
    def window_samples(self) -> int:
        """Length of the window in pulses."""
        return round(self.window_s * self.prf_hz)

    @cached_property
    def time_s(self) -> np.ndarray:
        """Slow time of the pulses, (N,), from -settling_s on; 0 is the left edge of the picture."""
        pulses = round(self.duration_s * self.prf_hz)
        return np.arange(-self.settling_samples, pulses) / self.prf_hz

    @cached_property
    def settling_samples(self) -> int:
        """Number of pulses before the picture begins."""
        return round(self.settling_s * self.prf_hz)

    @cached_property
    def velocities_m_s(self) -> np.ndarray:
        """Centre velocity of each row of the picture, (rows,), from just below +v_max to just above -v_max."""
        return self.v_max_m_s * (1 - (2 * np.arange(self.rows) + 1) / self.rows)
