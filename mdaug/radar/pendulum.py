"""The pendulum at any amplitude: exact solution without damping, numerical with it."""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import ellipj, ellipk

GRAVITY_M_S2 = 9.80665


def period_s(length_m: float, amplitude_rad: float) -> float:
    """Return the period 4 sqrt(L / g) K(m), m = sin^2(amplitude / 2), K the complete elliptic integral."""
    return float(4 * np.sqrt(length_m / GRAVITY_M_S2) * ellipk(np.sin(amplitude_rad / 2) ** 2))


def swing(time_s: np.ndarray, length_m: float, amplitude_rad: float, damping_hz: float = 0.0) -> np.ndarray:
    """Return the angle in rad of theta'' = -(g / L) sin(theta) - damping theta', released at rest at time 0.

    Without damping sin(theta / 2) = k sn(K(k^2) + sqrt(g / L) t, k^2) with k = sin(amplitude / 2), for any time; the
    bob passes its lowest point at sqrt(2 g L (1 - cos(amplitude))). With damping the times must be >= 0 and rising.

    Args:
        time_s: (N,) times.
        length_m: distance from the pivot to the bob; of a rigid body, that of the pendulum of equal period.
        amplitude_rad: angle of release, in (0, pi).
        damping_hz: rate in 1/s.
    """
    if damping_hz == 0:
        m = np.sin(amplitude_rad / 2) ** 2
        sn, *_ = ellipj(ellipk(m) + np.sqrt(GRAVITY_M_S2 / length_m) * time_s, m)
        return 2 * np.arcsin(np.sqrt(m) * sn)
    solution = solve_ivp(
        lambda _, state: (state[1], -GRAVITY_M_S2 / length_m * np.sin(state[0]) - damping_hz * state[1]),
        (0, time_s[-1]),
        (amplitude_rad, 0.0),
        method="DOP853",
        dense_output=True,
        rtol=1e-8,
        atol=1e-8,
    )
    return solution.sol(time_s)[0]
