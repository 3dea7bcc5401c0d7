"""Rotors as thin wires: the echo over one turn, its line spectrum, and what of it the band of a radar passes.

Source: J. Martin and B. Mulgrew, "Analysis of the theoretical radar return signal from aircraft propeller blades",
IEEE Int. Radar Conf. 1990; V. C. Chen, The Micro-Doppler Effect in Radar, 2nd ed. 2019, ch. 3.
"""

from __future__ import annotations

import numpy as np


def rotor_echo(
    angle: np.ndarray, blades: int, length_m: float, elevation_rad: float, wavelength_m: float
) -> np.ndarray:
    """Return the echo of a rotor at blade angle theta, with its hub at range 0.

    s = 1/N sum_k sinc((2 L / lambda) cos(beta) cos(theta_k)) exp(-j (2 pi L / lambda) cos(beta) cos(theta_k)) with
    theta_k = theta + 2 pi k / N and sinc(x) = sin(pi x) / (pi x): N wires from the hub to the tip, each integrated
    exactly. A blade across the line of sight flashes; the flash of an approaching blade spans 0 to
    2 Omega L cos(beta) / lambda. abs(s) repeats at N f_rot for even N and 2 N f_rot for odd N.

    Args:
        angle: blade angle theta in rad, any shape; 0 points away from the radar.
        blades: number N of blades.
        length_m: length L of a blade.
        elevation_rad: angle beta between the line of sight and the plane of the rotor.
        wavelength_m: wavelength lambda.

    Returns:
        complex128 of the shape of `angle`; 1 for blades that all lie across the line of sight.
    """
    around = 2 * np.pi / blades * np.arange(blades).reshape(-1, *[1] * np.ndim(angle))
    along_sight = np.cos(elevation_rad) * np.cos(np.asarray(angle) + around)
    return np.mean(
        np.sinc(2 * length_m / wavelength_m * along_sight)
        * np.exp(-2j * np.pi * length_m / wavelength_m * along_sight),
        axis=0,
    )


def rotor_lines(
    blades: int, length_m: float, elevation_rad: float, wavelength_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (orders, amplitudes) of the Fourier series of `rotor_echo` over the blade angle.

    The echo depends on the angle alone and repeats every 1/N of a turn, so its spectrum is a comb of lines at the
    multiples (orders) of N f_rot: the HERM lines. They reach 2 Omega L cos(beta) / lambda on both sides.
    """
    turns_per_tip = 2 * np.pi * 2 * length_m / wavelength_m  # highest harmonic of the turn that carries power
    points = int(2 ** np.ceil(np.log2(4 * turns_per_tip / blades + 64)))
    angle = 2 * np.pi / blades * np.arange(points) / points
    amplitudes = np.fft.fft(rotor_echo(angle, blades, length_m, elevation_rad, wavelength_m)) / points
    return np.fft.fftfreq(points, 1 / points).astype(int), amplitudes


def rotor_echo_in_band(
    turns: np.ndarray, lines: tuple[np.ndarray, np.ndarray], blades: int, orders: range
) -> np.ndarray:
    """Return what a receiver that passes only the lines of the given orders records of a rotor.

    Args:
        turns: (N,) angle of the rotor in turns; the rate may drift slowly against the receiver's band.
        lines: of `rotor_lines`.
        blades: number of blades.
        orders: multiples of the blade rate that pass, rising by 1.

    Returns:
        complex128 (N,).
    """
    amplitude = dict(zip(*lines, strict=True))
    step = np.exp(2j * np.pi * blades * turns)
    power = np.exp(2j * np.pi * blades * orders.start * turns)
    echo = np.zeros_like(step)
    for order in orders:
        echo += amplitude[order] * power
        power *= step
    return echo
