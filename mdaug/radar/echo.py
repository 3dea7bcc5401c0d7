"""From moving scatterers to the complex slow-time signal of a radar: echo, clutter, I/Q image and noise."""

from __future__ import annotations

import numpy as np


def point_echo(positions: np.ndarray, rcs: np.ndarray, radar: np.ndarray, wavelength_m: float) -> np.ndarray:
    """Return the echo of point scatterers, s(t) = sum_i sqrt(rcs_i) / R_i^2 exp(-j 4 pi R_i / lambda).

    The amplitude falls as 1 / R^2 because the power of the radar equation falls as 1 / R^4. Approaching
    scatterers give positive Doppler, f = -(2 / lambda) dR/dt.

    Args:
        positions: (S, 3, N) in m.
        rcs: radar cross-section in m^2, broadcast against (S, N).
        radar: (3,) position in m.
        wavelength_m: wavelength in m.

    Returns:
        complex128 (N,), on an arbitrary common scale.
    """
    ranges = np.linalg.norm(positions - radar[:, None], axis=1)
    return np.sum(np.sqrt(rcs) / ranges**2 * np.exp(-4j * np.pi / wavelength_m * ranges), axis=0)


def ellipsoid_rcs(cos_angle: np.ndarray, half_length_m: np.ndarray, radius_m: np.ndarray) -> np.ndarray:
    """Return the backscatter cross-section in m^2 of a prolate ellipsoid with semi-axes (a, a, c).

    sigma = pi a^4 c^2 / (a^2 sin^2 + c^2 cos^2)^2 of the angle between long axis and line of sight: pi c^2 from
    the side, pi a^4 / c^2 from the end (Chen, The Micro-Doppler Effect in Radar, 2nd ed. 2019, ch. 3).
    """
    a2, c2, cos2 = radius_m**2, half_length_m**2, cos_angle**2
    return np.pi * a2**2 * c2 / (a2 * (1 - cos2) + c2 * cos2) ** 2


def receive(
    echo: np.ndarray,
    prf_hz: float,
    rng: np.random.Generator,
    *,
    snr_db: float,
    clutter_to_signal_db: float,
    iq_image_db: float,
) -> np.ndarray:
    """Return what the receiver records: echo scaled to mean power 1, plus clutter, I/Q image and noise.

    Args:
        echo: complex (N,), or (gates, N): every gate has the same noise, and clutter of its own.
        prf_hz: pulse repetition frequency.
        rng: source of the noise.
        snr_db: mean echo power over noise power, per pulse.
        clutter_to_signal_db: power of the static background over that of the echo; a hundredth of it in
            amplitude moves slowly (below 1 Hz), as foliage and curtains do.
        iq_image_db: power of the mirror line at -f relative to the line at f (imbalance of I and Q), negative.

    Returns:
        complex128 of the shape of the echo.
    """
    signal = echo / np.sqrt(np.mean(np.abs(echo) ** 2))
    time = np.arange(signal.shape[-1]) / prf_hz
    slow = np.exp(2j * np.pi * (rng.uniform(-1, 1, (6, 1)) * time + rng.uniform(size=(6, 1)))).mean(axis=0)
    signal = signal + 10 ** (clutter_to_signal_db / 20) * (1 + 0.01 * slow)
    signal = signal + 10 ** (iq_image_db / 20) * signal.conj()
    noise = rng.standard_normal((2, *signal.shape)) * np.sqrt(0.5 * 10 ** (-snr_db / 10))
    return signal + noise[0] + 1j * noise[1]
