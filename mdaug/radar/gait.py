"""The walking human of Boulic and Thalmann: joint positions over time from height, speed and personal traits.

Source: R. Boulic, N. Magnenat-Thalmann, D. Thalmann, "A global human walking model with real-time kinematic
personification", The Visual Computer 6 (1990), with the constants that V. C. Chen published. Three things differ
from the public copies of those constants: the elbow of class c uses rv - 1.3 in every place, the lateral and
fore-aft amplitudes of class a are negated so that they join class b, and the walker moves at V = rv Ht.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

from mdaug.radar import body

MAX_RELATIVE_SPEED = 3.0


@dataclass(frozen=True)
class Walker:
    """A person and a way to walk. The scales, all 1 by default, are the traits that tell people apart."""

    height_m: float = 1.8
    speed_m_s: float = 1.4
    phase: float = 0.0
    """Part of the cycle, in [0, 1), at t = 0; 0 is the heel strike of the right foot."""
    cycle_scale: float = 1.0
    """Cycle time over that of the model."""
    hip_scale: float = 1.0
    knee_scale: float = 1.0
    ankle_scale: float = 1.0
    shoulder_scale: float = 1.0
    elbow_scale: float = 1.0
    pelvis_scale: float = 1.0
    """Of the rotations of pelvis and thorax."""
    bounce_scale: float = 1.0
    """Of the translations of the spine."""
    knot_shift: float = 0.0
    """Later (positive) swing of the knees, in cycles."""
    asymmetry: float = 0.0
    """Hip and knee amplitudes of the right leg are larger by this part, of the left leg smaller."""
    lean_deg: float = 0.0
    """Of the trunk, forward."""
    build: float = 1.0
    """Radius of every ellipsoid over that of the table."""
    wander: float = 0.0
    """Amplitude, in cycles, of a slow drift of the phase against a perfect metronome."""
    wander_hz: float = 0.3
    lasts_s: float = np.inf
    """The walk begins at time 0 and ends then; without an end it has no beginning either."""
    ramp_s: float = 1.0
    """Time in which the walker sets off, and comes to a halt."""
    slowest: float = 1.0
    """Pace at the first and the last moment of the walk, over that between."""

    def __post_init__(self) -> None:
        if not 0 < self.relative_speed <= MAX_RELATIVE_SPEED:
            limit = MAX_RELATIVE_SPEED * self.hip_height_m
            raise ValueError(
                f"speed_m_s is {self.speed_m_s:g}; accepted at a height of {self.height_m:g} m is (0, {limit:.3g}]"
            )

    @classmethod
    def of(cls, parameters: dict) -> Walker:
        """Build a walker from those entries of `parameters` that are named after its fields."""
        return cls(**{field.name: parameters[field.name] for field in fields(cls) if field.name in parameters})

    @cached_property
    def hip_height_m(self) -> float:
        """Ht: the length of the legs."""
        return body.HIP_HEIGHT * self.height_m

    @cached_property
    def relative_speed(self) -> float:
        """Return rv = V / Ht in 1/s, which selects the curves: class a below 0.5, b below 1.3, c up to 3."""
        return self.speed_m_s / self.hip_height_m

    @cached_property
    def cycle_s(self) -> float:
        """Dc: time of two steps."""
        return self.cycle_scale * 1.346 / np.sqrt(self.relative_speed)

    @cached_property
    def support_part(self) -> float:
        """Ds / Dc: part of the cycle in which a foot is on the ground."""
        cycle_s = 1.346 / np.sqrt(self.relative_speed)
        return (0.752 * cycle_s - 0.143) / cycle_s

    def paced(self, time_s: np.ndarray) -> np.ndarray:
        """Return the times (N,) at which a walker of even pace is where this one is; cadence and speed slow alike."""
        if not np.isfinite(self.lasts_s):
            return time_s

        def lost(since_s: np.ndarray) -> np.ndarray:
            # Integral of 1 - minimum jerk over a ramp: what a slower pace has cost until then.
            p = np.clip(since_s / self.ramp_s, 0, 1)
            before = np.minimum(since_s, 0)
            return (1 - self.slowest) * (before + self.ramp_s * (p - p**4 * (2.5 - 3 * p + p**2)))

        return time_s - lost(time_s) + lost(self.lasts_s - time_s) - lost(np.array(self.lasts_s))

    def cycles(self, time_s: np.ndarray) -> np.ndarray:
        """Return the phase of the right side at the times (N,), not reduced to [0, 1)."""
        drift = self.wander * np.sin(2 * np.pi * (self.wander_hz * time_s + self.phase))
        return self.phase + time_s / self.cycle_s + drift


def control_points(rv: float, support_part: float) -> dict[str, list[tuple[float, float]]]:
    """Return the control points (phase, degrees) of the five joint curves of the right side at relative speed rv."""
    s = support_part
    thorax = [(0.1, 4 * rv / 3), (0.4, -1.5 * rv), (0.6, -4 * rv / 3), (0.9, 1.5 * rv)]
    if rv < 0.5:
        return {
            "hip": [(-0.1, 50 * rv), (0.5, -30 * rv)],
            "knee": [(0.17, 3), (0.4, 3), (0.75, 140 * rv), (1, 3)],
            "ankle": [(0, -3), (0.08, -30 * rv - 3), (0.5, 22 * rv - 3), (s, -34 * rv - 3), (0.85, -3)],
            "thorax": thorax,
            "elbow": [(0.05, 6 * rv + 3), (0.5, 34 * rv + 3), (0.9, 10 * rv + 3)],
        }
    if rv < 1.3:
        p = (rv - 0.5) / 0.8
        return {
            "hip": [(-0.1, 25), (0.5, -15)],
            "knee": [(0.17, 3), (0.4, 3), (0.75, 70), (1, 3)],
            "ankle": [(0, -3), (0.08, -18), (0.5, 8), (s, -20), (0.85, -3)],
            "thorax": thorax,
            "elbow": [(0.05, 6 + 8 * p), (0.5 + 0.01 * p, 20 + 24 * p), (0.9, 8 + 9 * p)],
        }
    q = (rv - 1.3) / 1.7
    return {
        "hip": [(-0.1, 25 + 6 * q), (-0.1 + 0.2 * q, 25 + 5 * q), (0.5, -15)],
        "knee": [(0.17 - 0.05 * q, 3 + 22 * q), (0.4, 3), (0.75 - 0.05 * q, 70 - 5 * q), (1 - 0.03 * q, 3 + 3 * q)],
        "ankle": [
            (0, -3 + 5 * q),
            (0.08, -18 + 4 * q),
            (0.5 - 0.1 * q, 8 - 3 * q),
            (s, -20 - 8 * q),
            (0.85, -3 + 5 * q),
        ],
        "thorax": thorax,
        "elbow": [(0.05, 14 - 6 * q), (0.51 + 0.04 * q, 44 + 26 * q), (0.9 - 0.1 * q, 17 - 6 * q)],
    }


def periodic_curve(points: list[tuple[float, float]], phase: np.ndarray) -> np.ndarray:
    """Return the monotone piecewise cubic (PCHIP) through the points, repeated with period 1, at any phase."""
    knots = np.array(sorted((phase % 1, value) for phase, value in points))
    knots = knots[np.diff(knots[:, 0], prepend=-1) > 1e-6]  # the two hip points of class c coincide at rv = 1.3
    repeated = np.concatenate([knots + np.array([shift, 0]) for shift in (-1, 0, 1)])
    return PchipInterpolator(*repeated.T)(phase % 1)


def pelvis_tilt(phase: np.ndarray) -> np.ndarray:
    """Return the drop of the pelvis to the side of the swinging leg, in [-2, 2] amplitudes; negative: left side down.

    Four half-waves of a cosine with breaks at 0.15, 0.5 and 0.65 of the cycle.
    """
    t = phase % 1
    return np.select(
        [t < 0.15, t < 0.5, t < 0.65],
        [
            -1 + np.cos(2 * np.pi * 10 / 3 * t),
            -1 - np.cos(2 * np.pi * 10 / 7 * (t - 0.15)),
            1 - np.cos(2 * np.pi * 10 / 3 * (t - 0.5)),
        ],
        1 + np.cos(2 * np.pi * 10 / 7 * (t - 0.65)),
    )


def spine_origin(walker: Walker, time_s: np.ndarray) -> np.ndarray:
    """Return the position (3, N) in m of the lower end of the spine; x is the direction of walking."""
    time_s = walker.paced(time_s)
    rv, t = walker.relative_speed, walker.cycles(time_s)
    scale = walker.bounce_scale * walker.hip_height_m
    vertical = 0.015 * rv
    lateral = -0.032 if rv >= 0.5 else 0.128 * rv**2 - 0.128 * rv
    fore_aft = -0.021 if rv >= 0.5 else 0.084 * rv**2 - 0.084 * rv
    return np.stack(
        [
            walker.speed_m_s * time_s + scale * fore_aft * np.sin(4 * np.pi * (t + 0.625 - walker.support_part)),
            scale * lateral * np.sin(2 * np.pi * (t - 0.1)),
            walker.hip_height_m + scale * vertical * (np.sin(2 * np.pi * (2 * t - 0.35)) - 1),
        ]
    )


def joints(walker: Walker, time_s: np.ndarray) -> dict[str, np.ndarray]:
    """Return joint positions in m: of the middle (3, N), of right and left (2, 3, N).

    Middle: "spine", "neck", "crown". Both sides: "hip", "knee", "ankle", "toe", "shoulder", "elbow", "hand".
    """
    rv, height = walker.relative_speed, walker.height_m
    right = walker.cycles(walker.paced(time_s))
    both = np.stack([right, right + 0.5])
    points = control_points(rv, walker.support_part)
    points["knee"] = [(phase + walker.knot_shift, value) for phase, value in points["knee"]]
    curve = {name: np.radians(periodic_curve(points[name], both)) for name in ("hip", "knee", "ankle", "elbow")}
    uneven = 1 - walker.asymmetry * body.SIDES[:, None]

    # Angles from hanging down, forward positive; the arms swing against the legs.
    thigh = walker.hip_scale * uneven * curve["hip"]
    shank = thigh - walker.knee_scale * uneven * curve["knee"]
    foot = shank + walker.ankle_scale * curve["ankle"] + np.pi / 2
    swing = np.radians(3 - 9.88 * rv / 2 - 9.88 * rv * np.cos(2 * np.pi * both))
    bend = 8 * rv - 8 * rv**2 if rv < 0.5 else 2.0
    lean = np.radians(walker.lean_deg + bend * (1 - np.sin(2 * np.pi * (2 * right - 0.1))))
    upper_arm = walker.shoulder_scale * swing - lean
    forearm = upper_arm + walker.elbow_scale * curve["elbow"]

    # Right hip forward at the heel strike of the right foot; the thorax turns against the pelvis.
    pelvis_yaw = walker.pelvis_scale * np.radians(4 * rv) * np.cos(2 * np.pi * right)
    thorax_yaw = -walker.pelvis_scale * np.radians(periodic_curve(points["thorax"], right))
    tilt = walker.pelvis_scale * np.radians(1.66 * rv) * pelvis_tilt(right)

    # Positions, from the lower end of the spine outwards.
    spine = spine_origin(walker, time_s)
    neck = spine + body.rising(body.TORSO * height, lean)
    hip = spine + _crossbar(body.HALF_HIP * height, pelvis_yaw, tilt)
    knee = hip + _turn(body.hanging(body.THIGH * height, thigh), pelvis_yaw)
    ankle = knee + _turn(body.hanging(body.SHANK * height, shank), pelvis_yaw)
    toe = ankle + _turn(body.hanging(body.FOOT * height, foot), pelvis_yaw)
    shoulder = neck + _crossbar(body.HALF_SHOULDER * height, thorax_yaw, np.zeros_like(thorax_yaw))
    elbow = shoulder + _turn(body.hanging(body.UPPER_ARM * height, upper_arm), thorax_yaw)
    hand = elbow + _turn(body.hanging(body.FOREARM * height, forearm), thorax_yaw)
    crown = neck + body.rising(body.HEAD * height, lean)
    return {
        "spine": spine, "neck": neck, "crown": crown, "hip": hip, "knee": knee, "ankle": ankle, "toe": toe,
        "shoulder": shoulder, "elbow": elbow, "hand": hand,
    }  # fmt: skip


def ellipsoids(walker: Walker, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start (16, 3, N), end (16, 3, N) and radius (16,) in m of the ellipsoids that stand for the body."""
    at = joints(walker, time_s)
    middle = [("neck", "crown", body.HEAD_RADIUS), ("spine", "neck", body.TORSO_RADIUS)]
    sides = [
        ("neck", "shoulder", body.SHOULDER_RADIUS),
        ("shoulder", "elbow", body.UPPER_ARM_RADIUS),
        ("elbow", "hand", body.FOREARM_RADIUS),
        ("spine", "hip", body.HIP_RADIUS),
        ("hip", "knee", body.THIGH_RADIUS),
        ("knee", "ankle", body.SHANK_RADIUS),
        ("ankle", "toe", body.FOOT_RADIUS),
    ]
    pairs = [(at[first], at[second], radius) for first, second, radius in middle]
    for first, second, radius in sides:
        for side in range(2):
            pairs.append((at[first] if at[first].ndim == 2 else at[first][side], at[second][side], radius))
    start, end, radius = zip(*pairs, strict=True)
    return np.stack(start), np.stack(end), walker.build * np.array(radius)


def _turn(vectors: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Turn vectors (2, 3, N) that lie in the plane of walking about the vertical by `yaw` (N,)."""
    x, _, z = np.moveaxis(vectors, 1, 0)
    return np.stack([x * np.cos(yaw), x * np.sin(yaw), z], axis=1)


def _crossbar(half_width_m: float, yaw: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """Return the right and left end (2, 3, N) of a bar across the body after tilt (about x) and yaw (about z)."""
    end = half_width_m * np.stack([-np.sin(yaw) * np.cos(tilt), np.cos(yaw) * np.cos(tilt), np.sin(tilt)])
    return body.SIDES[:, None, None] * end
