"""People before a radar: what is drawn for a person and for a picture, and the echo of what they do."""

from __future__ import annotations

import numpy as np

from mdaug.radar import body
from mdaug.radar.echo import ellipsoid_echo
from mdaug.radar.fall import Fall, SitDown, swing
from mdaug.radar.gait import Walker, ellipsoids
from mdaug.radar.parameters import Draw, Parameters, radar_position
from mdaug.radar.sensor import Sensor

RADAR_HEIGHT_M = 1.0
HAND, HAND_RADIUS = 0.1, 0.05
"""Length over body height, and radius in m."""


def _person(draw: Draw) -> Parameters:
    return {"height_m": draw.uniform(1.52, 1.95), "build": draw.uniform(0.85, 1.2)}


def _toward_or_away(draw: Draw, spread_deg: float) -> float:
    return draw.choice(0, 180) + draw.uniform(-spread_deg, spread_deg)


def walking_group(draw: Draw) -> Parameters:
    """Body and gait of one person: what a gait recognition data set calls an identity."""
    return _person(draw) | {
        "usual_speed_m_s": draw.uniform(0.75, 1.6),
        "cycle_scale": draw.normal(1, 0.03),
        "hip_scale": draw.normal(1, 0.06),
        "knee_scale": draw.normal(1, 0.06),
        "ankle_scale": draw.normal(1, 0.15),
        "shoulder_scale": draw.uniform(0.4, 1.4),
        "elbow_scale": draw.uniform(0.6, 1.3),
        "pelvis_scale": draw.uniform(0.6, 1.4),
        "bounce_scale": draw.uniform(0.7, 1.4),
        "knot_shift": draw.normal(0, 0.008),
        "asymmetry": draw.normal(0, 0.03),
        "lean_deg": draw.uniform(-1, 5),
    }


def walking_image(draw: Draw, person: Parameters) -> Parameters:
    """One pass of that person in front of the radar."""

    def near(name: str, spread: float) -> float:
        return draw.normal(float(person[name]), spread)

    return {
        "speed_m_s": near("usual_speed_m_s", 0.06),
        "phase": draw.uniform(0, 1),
        "hip_scale": near("hip_scale", 0.015),
        "knee_scale": near("knee_scale", 0.015),
        "shoulder_scale": near("shoulder_scale", 0.06),
        "elbow_scale": near("elbow_scale", 0.04),
        "wander": draw.uniform(0, 0.02),
        "wander_hz": draw.uniform(0.15, 0.5),
        "distance_m": draw.uniform(6, 12),
        "aspect_deg": _toward_or_away(draw, 30),
    }


def walking_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """The walker crosses the origin in the middle of the picture."""
    radar = radar_position(p["distance_m"], p["aspect_deg"], RADAR_HEIGHT_M)
    radar[0] += p["speed_m_s"] * time_s[-1] / 2
    return ellipsoid_echo(*ellipsoids(Walker.of(p), time_s), radar, sensor.wavelength_m)


def fall_group(draw: Draw) -> Parameters:
    """One person; the habit is how deep the knees give way and how far the arms fly."""
    return _person(draw) | {"usual_knee_deg": draw.uniform(0, 60), "usual_arm_deg": draw.uniform(20, 110)}


def fall_image(draw: Draw, person: Parameters) -> Parameters:
    """One fall."""
    return {
        "start_s": draw.uniform(0.2, 1.3),
        "start_deg": draw.uniform(3, 12),
        "knee_deg": abs(draw.normal(float(person["usual_knee_deg"]), 6)),
        "arm_deg": draw.normal(float(person["usual_arm_deg"]), 10),
        "distance_m": draw.uniform(3, 8),
        "aspect_deg": _toward_or_away(draw, 35),
    }


def sitting_group(draw: Draw) -> Parameters:
    """One person on one chair."""
    return _person(draw) | {
        "drop_m": draw.uniform(0.36, 0.48),
        "back_m": draw.uniform(0.2, 0.38),
        "usual_trunk_deg": draw.uniform(25, 55),
        "arm_deg": draw.uniform(10, 45),
    }


def sitting_image(draw: Draw, person: Parameters) -> Parameters:
    """One time of sitting down, or of standing up."""
    return {
        "start_s": draw.uniform(0.3, 0.9),
        "sitting_s": draw.uniform(1.1, 1.9),
        "trunk_deg": draw.normal(float(person["usual_trunk_deg"]), 4),
        "distance_m": draw.uniform(2, 5),
        "aspect_deg": _toward_or_away(draw, 35),
    }


def fall_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """A person who falls in the direction +x."""
    fall = Fall(p["height_m"], p["start_s"], p["start_deg"], p["knee_deg"], p["arm_deg"], p["build"])
    radar = radar_position(p["distance_m"], p["aspect_deg"], RADAR_HEIGHT_M)
    return ellipsoid_echo(*fall.ellipsoids(time_s), radar, sensor.wavelength_m)


def sitting_echo(p: dict, sensor: Sensor, time_s: np.ndarray, backwards: bool = False) -> np.ndarray:
    """A person who faces +x and sits down, or stands up."""
    names = ("height_m", "start_s", "sitting_s", "drop_m", "back_m", "trunk_deg", "arm_deg", "build")
    motion = SitDown(**{name: p[name] for name in names}, backwards=backwards)
    radar = radar_position(p["distance_m"], p["aspect_deg"], RADAR_HEIGHT_M)
    return ellipsoid_echo(*motion.ellipsoids(time_s), radar, sensor.wavelength_m)


def standing_up_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """A person who faces +x and stands up."""
    return sitting_echo(p, sensor, time_s, backwards=True)


def arm_swing_group(draw: Draw) -> Parameters:
    """One person with a way to swing: arms together (0), against each other (1), or one arm only (2)."""
    return _person(draw) | {
        "arm_mode": draw.choice(0, 1, 2),
        "usual_amplitude_deg": draw.uniform(35, 85),
        "pendulum_scale": draw.uniform(0.55, 1.0),
        "sway_m": draw.uniform(0.01, 0.03),
    }


def arm_swing_image(draw: Draw, person: Parameters) -> Parameters:
    """A few swings, with the arms released some time before the picture begins."""
    return {
        "amplitude_deg": draw.normal(float(person["usual_amplitude_deg"]), 5),
        "damping_hz": draw.uniform(0.02, 0.35),
        "released_s": draw.uniform(0.5, 2),
        "lag_s": draw.uniform(0, 0.08),
        "elbow_deg": draw.uniform(0, 25),
        "distance_m": draw.uniform(2, 6),
        "aspect_deg": _toward_or_away(draw, 30),
    }


def arm_swing_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """Stretched arms as physical pendulums at the shoulders of a standing person; the trunk gives way a little."""
    height = p["height_m"]
    arm_m = (body.UPPER_ARM + body.FOREARM + HAND) * height
    length = p["pendulum_scale"] * 2 / 3 * arm_m  # 2/3: uniform rod; muscles make it shorter
    amplitude = np.radians(p["amplitude_deg"])
    first = swing(time_s + p["released_s"], length, amplitude, p["damping_hz"])
    second = swing(time_s + p["released_s"] + p["lag_s"], length, amplitude, p["damping_hz"])
    angle = np.stack([first, (second, -second, 0 * second)[int(p["arm_mode"])]])
    sway = -p["sway_m"] * angle.mean(axis=0) / amplitude

    hip = np.stack([0.3 * sway, 0 * sway, np.full_like(sway, body.HIP_HEIGHT * height)])
    neck = hip + np.stack([0.7 * sway, 0 * sway, np.full_like(sway, body.TORSO * height)])
    crown = neck + np.array([[0], [0], [body.HEAD * height]])
    shoulder = neck + body.sideways(body.HALF_SHOULDER * height)
    elbow = shoulder + body.hanging(body.UPPER_ARM * height, angle)
    forearm = angle + np.radians(p["elbow_deg"]) * (1 + angle / amplitude) / 2
    wrist = elbow + body.hanging(body.FOREARM * height, forearm)
    hand = wrist + body.hanging(HAND * height, forearm)
    # An arm that swings stretched shows every point of itself, so it is cut finer than in the walker.
    arm_start, arm_end = body.divide(np.concatenate([shoulder, elbow]), np.concatenate([elbow, wrist]), 4)
    start = np.concatenate([hip[None], neck[None], wrist, arm_start])
    end = np.concatenate([neck[None], crown[None], hand, arm_end])
    arms = np.tile(np.repeat([body.UPPER_ARM_RADIUS, body.FOREARM_RADIUS], 2), 4)
    radius = p["build"] * np.array([body.TORSO_RADIUS, body.HEAD_RADIUS, HAND_RADIUS, HAND_RADIUS, *arms])
    radar = radar_position(p["distance_m"], p["aspect_deg"], RADAR_HEIGHT_M)
    return ellipsoid_echo(start, end, radius, radar, sensor.wavelength_m)
