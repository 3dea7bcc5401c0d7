"""People before a radar: what is drawn for a person and for a picture, and the echo of what they do."""

from __future__ import annotations

import numpy as np

from mdaug.radar import body
from mdaug.radar.fall import Fall, SitDown, swing
from mdaug.radar.gait import Walker, ellipsoids
from mdaug.radar.parameters import Draw, Parameters, radar_position
from mdaug.radar.sensor import Sensor
from mdaug.radar.surface import Surface, body_echo

RADAR_HEIGHT_M = 1.0
HAND, HAND_RADIUS = 0.1, 0.05
"""Length over body height, and radius in m."""


SCATTERERS, SCINTILLATION_S = 240, 0.1
"""Of every body, and the correlation time of each scatterer's cross-section."""


def _person(draw: Draw) -> Parameters:
    return {"height_m": draw.uniform(1.52, 1.95), "build": draw.uniform(0.85, 1.2)}


def clothes(draw: Draw) -> Parameters:
    """What a person wears, and breathes: part of who it is."""
    return {
        "scatterers": SCATTERERS,
        "scintillation_s": SCINTILLATION_S,
        "roughness": draw.uniform(0.4, 0.9),
        "clothing_mm": draw.uniform(0.5, 1.5),
        "clothing_hz": draw.uniform(1, 3),
        "breathing_mm": draw.uniform(2, 6),
        "breathing_hz": draw.uniform(0.2, 0.35),
    }


def room(draw: Draw) -> Parameters:
    """What is around a person: the floor and two side walls."""
    return {
        "floor_db": draw.uniform(-20, -10),
        "wall_db": draw.uniform(-20, -10),
        "left_m": draw.uniform(1.5, 4),
        "right_m": draw.uniform(1.5, 4),
    }


def moment(draw: Draw) -> Parameters:
    """What never repeats: the fluctuation of the echo and the folds of the cloth."""
    return {"surface_seed": int(draw.rng.integers(1 << 31))}


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
        **clothes(draw),
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
        **room(draw),
        **moment(draw),
    }


def walking_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """The walker crosses the origin in the middle of the picture."""
    radar = radar_position(p["distance_m"], p["aspect_deg"], RADAR_HEIGHT_M)
    radar[0] += p["speed_m_s"] * time_s[-1] / 2
    walker = Walker.of(p)
    return body_echo(lambda times: ellipsoids(walker, times), time_s, radar, sensor, Surface.of(p))


def fall_group(draw: Draw) -> Parameters:
    """One person; the habit is how deep the knees give way and how far the arms fly."""
    habits = {"usual_knee_deg": draw.uniform(0, 60), "usual_arm_deg": draw.uniform(20, 110)}
    return _person(draw) | habits | clothes(draw)


def fall_image(draw: Draw, person: Parameters) -> Parameters:
    """One fall."""
    return {
        "start_s": draw.uniform(0.2, 1.3),
        "start_deg": draw.uniform(3, 12),
        "knee_deg": abs(draw.normal(float(person["usual_knee_deg"]), 6)),
        "arm_deg": draw.normal(float(person["usual_arm_deg"]), 10),
        "distance_m": draw.uniform(3, 8),
        "aspect_deg": _toward_or_away(draw, 35),
        **room(draw),
        **moment(draw),
    }


def sitting_group(draw: Draw) -> Parameters:
    """One person on one chair."""
    return _person(draw) | {
        "drop_m": draw.uniform(0.36, 0.48),
        "back_m": draw.uniform(0.2, 0.38),
        "usual_trunk_deg": draw.uniform(25, 55),
        "arm_deg": draw.uniform(10, 45),
        **clothes(draw),
    }


def sitting_image(draw: Draw, person: Parameters) -> Parameters:
    """One time of sitting down, or of standing up."""
    return {
        "start_s": draw.uniform(0.3, 0.9),
        "sitting_s": draw.uniform(1.1, 1.9),
        "trunk_deg": draw.normal(float(person["usual_trunk_deg"]), 4),
        "distance_m": draw.uniform(2, 5),
        "aspect_deg": _toward_or_away(draw, 35),
        **room(draw),
        **moment(draw),
    }


def fall_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """A person who falls in the direction +x."""
    fall = Fall(p["height_m"], p["start_s"], p["start_deg"], p["knee_deg"], p["arm_deg"], p["build"])
    radar = radar_position(p["distance_m"], p["aspect_deg"], RADAR_HEIGHT_M)
    return body_echo(fall.ellipsoids, time_s, radar, sensor, Surface.of(p))


def sitting_echo(p: dict, sensor: Sensor, time_s: np.ndarray, backwards: bool = False) -> np.ndarray:
    """A person who faces +x and sits down, or stands up."""
    names = ("height_m", "start_s", "sitting_s", "drop_m", "back_m", "trunk_deg", "arm_deg", "build")
    motion = SitDown(**{name: p[name] for name in names}, backwards=backwards)
    radar = radar_position(p["distance_m"], p["aspect_deg"], RADAR_HEIGHT_M)
    return body_echo(motion.ellipsoids, time_s, radar, sensor, Surface.of(p))


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
        **clothes(draw),
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
        **room(draw),
        **moment(draw),
    }


def arm_swing_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """A standing person who swings the arms."""
    radar = radar_position(p["distance_m"], p["aspect_deg"], RADAR_HEIGHT_M)
    return body_echo(lambda times: arm_swing(p, times), time_s, radar, sensor, Surface.of(p))


def arm_swing(p: dict, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, end (8, 3, N) and radius (8,) in m of trunk, head, hands, upper arms and forearms.

    Stretched arms are physical pendulums at the shoulders of a standing person; the trunk gives way a little.
    """
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
    start = np.concatenate([hip[None], neck[None], wrist, shoulder, elbow])
    end = np.concatenate([neck[None], crown[None], hand, elbow, wrist])
    arms = np.repeat([HAND_RADIUS, body.UPPER_ARM_RADIUS, body.FOREARM_RADIUS], 2)
    return start, end, p["build"] * np.array([body.TORSO_RADIUS, body.HEAD_RADIUS, *arms])
