"""What gravity moves: arms as pendulums, a fall as a rod about the ankles, and sitting down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import ellipj, ellipk

from mdaug.radar import body

GRAVITY_M_S2 = 9.80665


def minimum_jerk(part: np.ndarray) -> np.ndarray:
    """Return 10 p^3 - 15 p^4 + 6 p^5, held at 0 before part 0 and at 1 after part 1; its peak slope is 1.875.

    Source: Flash and Hogan, "The coordination of arm movements", J. Neuroscience 5, 1985.
    """
    p = np.clip(part, 0, 1)
    return p**3 * (10 - 15 * p + 6 * p**2)


def toppling_angle(time_s: np.ndarray, length_m: float, start_rad: float) -> np.ndarray:
    """Return the angle from the vertical of a rod that falls about its foot, theta'' = (3 g / 2 L) sin(theta).

    At rest at `start_rad` until time 0, at pi / 2 (the floor) from the impact on. The top hits the floor at
    sqrt(3 g L cos(start)); its horizontal speed is highest, (2/3) sqrt(g L) for a small start, at 48 degrees.

    Args:
        time_s: (N,) times, also negative ones.
        length_m: length of the rod.
        start_rad: angle of release, in (0, pi / 2).
    """

    def floor(_: float, state: np.ndarray) -> float:
        return state[0] - np.pi / 2

    floor.terminal = True  # type: ignore[attr-defined]
    solution = solve_ivp(
        lambda _, state: (state[1], 1.5 * GRAVITY_M_S2 / length_m * np.sin(state[0])),
        (0, 60),
        (start_rad, 0.0),
        method="DOP853",
        events=floor,
        dense_output=True,
        rtol=1e-9,
        atol=1e-9,
    )
    angle = solution.sol(np.clip(time_s, 0, solution.t[-1]))[0]
    return np.where(time_s >= solution.t[-1], np.pi / 2, angle)


@dataclass(frozen=True)
class Fall:
    """A fall in the direction +x from standing at x = 0."""

    height_m: float = 1.75
    start_s: float = 0.5
    start_deg: float = 5.0
    knee_deg: float = 0.0
    """Deepest bend of the knees on the way down; 0 is the rigid rod."""
    arm_deg: float = 0.0
    """Angle to which the arms are flung forward of the trunk."""
    build: float = 1.0

    def ellipsoids(self, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return start (12, 3, N), end (12, 3, N) and radius (12,) in m, as `limbs` orders them."""
        height = self.height_m
        lean = toppling_angle(time_s - self.start_s, body.STANDING * height, np.radians(self.start_deg))
        done = (lean - lean[0]) / (np.pi / 2 - lean[0])
        bend = np.radians(self.knee_deg) * np.sin(np.pi * done) ** 2
        shank = np.minimum(lean + bend / 2, np.pi / 2)
        thigh = lean - bend / 2
        arm = np.radians(self.arm_deg) * minimum_jerk(2 * done)
        ankle = np.zeros((3, len(time_s)))
        knee = ankle + body.rising(body.SHANK * height, shank)
        hip = knee + body.rising(body.THIGH * height, thigh)
        return limbs(height, self.build, ankle, knee, hip, trunk=lean, upper_arm=arm - lean, forearm=1.3 * arm - lean)


@dataclass(frozen=True)
class SitDown:
    """A person who faces +x and sits down on a seat behind; played backwards it is standing up."""

    height_m: float = 1.75
    start_s: float = 0.5
    sitting_s: float = 1.5
    """Time T of the movement."""
    drop_m: float = 0.45
    back_m: float = 0.3
    trunk_deg: float = 40.0
    """Deepest bow of the trunk, which returns upright."""
    arm_deg: float = 30.0
    """Forward swing of the arms, which ends with the hands on the thighs."""
    build: float = 1.0
    backwards: bool = False
    """Play the movement from the seat: standing up, the exact reversal in time."""

    def ellipsoids(self, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return start (12, 3, N), end (12, 3, N) and radius (12,) in m, as `limbs` orders them."""
        height = self.height_m
        part = (time_s - self.start_s) / self.sitting_s
        part = 1 - part if self.backwards else part
        path = minimum_jerk(part)
        bow = np.radians(self.trunk_deg) * (minimum_jerk(part / 0.55) - minimum_jerk((part - 0.45) / 0.55))
        arm = np.radians(self.arm_deg) * path
        ankle = np.zeros((3, len(time_s)))
        straight = 0.985 * body.HIP_HEIGHT * height  # knees never quite locked, so the bend below is smooth
        hip = np.stack([-self.back_m * path, np.zeros_like(path), straight - self.drop_m * path])
        knee = _knee(hip, body.SHANK * height, body.THIGH * height)
        return limbs(height, self.build, ankle, knee, hip, trunk=bow, upper_arm=arm - 0.5 * bow, forearm=2.2 * arm)


def limbs(
    height_m: float,
    build: float,
    ankle: np.ndarray,
    knee: np.ndarray,
    hip: np.ndarray,
    *,
    trunk: np.ndarray,
    upper_arm: np.ndarray,
    forearm: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, end (12, 3, N) and radius (12,) in m of a body whose two sides move alike.

    In order: torso, head, then right and left of shank, thigh, shoulder, upper arm, forearm.

    Args:
        height_m: body height.
        build: factor on the radii.
        ankle: (3, N) middle between the ankles.
        knee: (3, N) middle between the knees.
        hip: (3, N) lower end of the spine.
        trunk: (N,) forward lean of the trunk in rad.
        upper_arm: (N,) forward angle of the upper arms from hanging down.
        forearm: (N,) the same of the forearms.
    """
    width = body.sideways(body.HALF_HIP * height_m)
    neck = hip + body.rising(body.TORSO * height_m, trunk)
    crown = neck + body.rising(body.HEAD * height_m, trunk)
    shoulder = neck + body.sideways(body.HALF_SHOULDER * height_m)
    elbow = shoulder + body.hanging(body.UPPER_ARM * height_m, upper_arm)
    hand = elbow + body.hanging(body.FOREARM * height_m, forearm)
    both_necks = np.stack([neck, neck])
    start = np.concatenate([hip[None], neck[None], ankle + width, knee + width, both_necks, shoulder, elbow])
    end = np.concatenate([neck[None], crown[None], knee + width, hip + width, shoulder, elbow, hand])
    pairs = [body.SHANK_RADIUS, body.THIGH_RADIUS, body.SHOULDER_RADIUS, body.UPPER_ARM_RADIUS, body.FOREARM_RADIUS]
    return start, end, build * np.array([body.TORSO_RADIUS, body.HEAD_RADIUS, *np.repeat(pairs, 2)])


def _knee(hip: np.ndarray, shank_m: float, thigh_m: float) -> np.ndarray:
    """Return the knee (3, N) in front of the line from the ankle, at the origin, to the hip (3, N)."""
    x, _, z = hip
    distance = np.hypot(x, z)
    along = (distance**2 + shank_m**2 - thigh_m**2) / (2 * distance)
    ahead = np.sqrt(np.maximum(shank_m**2 - along**2, 0))
    return np.stack([along * x + ahead * z, np.zeros_like(x), along * z - ahead * x]) / distance


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
