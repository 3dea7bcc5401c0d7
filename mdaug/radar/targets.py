"""The classes of simulated targets: what is drawn for a group and for an image, and the echo that follows from it.

A group is one person, device or animal: it keeps its body and habits over all its images, and a split by group
keeps it on one side. Every number that is drawn is a column of the metadata, rounded before it is used, so a row of
the metadata is all that the clean echo depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from mdaug.radar import body
from mdaug.radar.bird import Wing
from mdaug.radar.echo import ellipsoid_echo, point_echo
from mdaug.radar.fall import Fall, SitDown, minimum_jerk
from mdaug.radar.gait import Walker, ellipsoids
from mdaug.radar.pendulum import swing
from mdaug.radar.rotor import rotor_echo_in_band, rotor_lines
from mdaug.radar.sensor import Sensor

Parameters = dict[str, float | int | str]
GROUP, IMAGE, NOISE = range(3)
RADAR_HEIGHT_M = 1.0
HAND, HAND_RADIUS = 0.1, 0.05
"""Length over body height, and radius in m."""


class Draw:
    """Random numbers for parameters, rounded to six significant digits so that text holds them exactly."""

    def __init__(self, *key: int):
        self.rng = np.random.default_rng(key)

    @classmethod
    def of(cls, name: str, seed: int, purpose: int, number: int) -> Draw:
        """Return the numbers of one purpose (GROUP, IMAGE or NOISE) of a class, whatever other classes there are."""
        return cls(seed, crc32(name.encode()), purpose, number)

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high]."""
        return float(f"{self.rng.uniform(low, high):.6g}")

    def normal(self, mean: float, std: float) -> float:
        """Return a normal number, cut at two standard deviations."""
        return float(f"{mean + std * np.clip(self.rng.standard_normal(), -2, 2):.6g}")

    def choice(self, *values: float) -> float:
        """Return one of the values."""
        return values[self.rng.integers(len(values))]


@dataclass(frozen=True)
class Target:
    """One class: parameters of a group, parameters of an image of that group, and the echo (N,) of both together."""

    group: Callable[[Draw], Parameters]
    image: Callable[[Draw, Parameters], Parameters]
    echo: Callable[[dict, Sensor, np.ndarray], np.ndarray]
    snr_db: tuple[float, float] = (20, 36)
    """Per pulse, over the whole picture: a short motion reaches the same contrast with less."""


def draw(name: str, seed: int, group: int, index: int) -> Parameters:
    """Return all physical parameters of image `index` of class `name`: a pure function of its arguments."""
    target = TARGETS[name]
    of_group = target.group(Draw.of(name, seed, GROUP, group))
    image = Draw.of(name, seed, IMAGE, index)
    of_image = target.image(image, of_group)
    received: Parameters = {
        "snr_db": image.uniform(*target.snr_db),
        "clutter_to_signal_db": image.uniform(20, 40),
        "iq_image_db": image.uniform(-50, -32),
    }
    return of_group | of_image | received


def radar_position(distance_m: float, aspect_deg: float, height_m: float) -> np.ndarray:
    """Return where the radar stands (3,) for a target at the origin that faces +x; at aspect 0 it faces the radar."""
    aspect = np.radians(aspect_deg)
    return np.array([distance_m * np.cos(aspect), distance_m * np.sin(aspect), height_m])


def _person(draw: Draw) -> Parameters:
    return {"height_m": draw.uniform(1.52, 1.95), "build": draw.uniform(0.85, 1.2)}


def _toward_or_away(draw: Draw, spread_deg: float) -> float:
    return draw.choice(0, 180) + draw.uniform(-spread_deg, spread_deg)


# Walking


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


# Fall, sitting down, standing up


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


# Swinging arms


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


# Drone


def drone_group(draw: Draw) -> Parameters:
    """One aircraft: number and size of its rotors, and the rate at which they carry it."""
    return {
        "rotors": draw.choice(4, 4, 6),
        "blades": draw.choice(2, 2, 3),
        "blade_m": draw.uniform(0.09, 0.19),
        "usual_rotation_hz": draw.uniform(60, 110),
        "arm_m": draw.uniform(0.15, 0.35),
        "blade_to_body_db": draw.uniform(0, 9),
    }


def drone_image(draw: Draw, drone: Parameters) -> Parameters:
    """One stretch of flight."""
    return {
        "rotation_hz": draw.normal(float(drone["usual_rotation_hz"]), 3),
        "rotation_spread": draw.uniform(0.005, 0.04),
        "drift": draw.uniform(0.002, 0.02),
        "drift_hz": draw.uniform(0.2, 1.2),
        "velocity_m_s": draw.uniform(-3, 3),
        "sway_m_s": draw.uniform(0.05, 0.6),
        "sway_hz": draw.uniform(0.15, 0.6),
        "elevation_deg": draw.uniform(5, 40),
        "rotor_seed": int(draw.rng.integers(2**31)),
    }


def drone_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """A body and rotors in far field; only the lines of the rotors that stay within the sampled band are received."""
    rng = np.random.default_rng(p["rotor_seed"])
    rotors, blades, elevation = int(p["rotors"]), int(p["blades"]), np.radians(p["elevation_deg"])
    sway = 2 * np.pi * p["sway_hz"]
    path = p["velocity_m_s"] * time_s + p["sway_m_s"] / sway * np.sin(sway * time_s + rng.uniform(0, 2 * np.pi))
    lines = rotor_lines(blades, p["blade_m"], elevation, sensor.wavelength_m)
    body_hz = 2 * p["velocity_m_s"] / sensor.wavelength_m
    passed_hz = sensor.prf_hz / 2 - 2 * p["sway_m_s"] / sensor.wavelength_m
    line_hz = blades * p["rotation_hz"] * (1 + p["rotation_spread"] + p["drift"])
    orders = range(-int((passed_hz + body_hz) / line_hz), int((passed_hz - body_hz) / line_hz) + 1)
    received = np.full(len(time_s), 10 ** (-p["blade_to_body_db"] / 20), dtype=complex)
    for rotor in range(rotors):
        rate = p["rotation_hz"] * (1 + p["rotation_spread"] * rng.uniform(-1, 1))
        drift = 2 * np.pi * p["drift_hz"]
        turns = rate * (time_s + p["drift"] / drift * np.sin(drift * time_s + rng.uniform(0, 2 * np.pi))) + rng.uniform()
        hub = p["arm_m"] * np.cos(elevation) * np.cos(2 * np.pi * rotor / rotors + rng.uniform(0, 0.1))
        spin = 1 if rotor % 2 else -1  # a rotor that turns the other way has the mirrored comb
        phase = np.exp(4j * np.pi / sensor.wavelength_m * hub)
        received += phase * rotor_echo_in_band(turns, (spin * lines[0], lines[1]), blades, orders)
    return received * np.exp(4j * np.pi / sensor.wavelength_m * path)


# Bird


def bird_group(draw: Draw) -> Parameters:
    """One bird: wings, weight of the wings against the body, and its rate of flapping."""
    return {
        "inner_m": draw.uniform(0.16, 0.32),
        "outer_m": draw.uniform(0.16, 0.34),
        "usual_flap_hz": draw.uniform(2.5, 5.5),
        "inner_amplitude_deg": draw.uniform(28, 42),
        "inner_offset_deg": draw.uniform(5, 18),
        "outer_amplitude_deg": draw.uniform(22, 36),
        "outer_offset_deg": draw.uniform(25, 42),
        "twist_deg": draw.uniform(8, 22),
        "wing_to_body_db": draw.uniform(-10, 0),
    }


def bird_image(draw: Draw, bird: Parameters) -> Parameters:
    """One stretch of flight; a glide takes part of some."""
    return {
        "flap_hz": draw.normal(float(bird["usual_flap_hz"]), 0.2),
        "flap_phase": draw.uniform(0, 1),
        "glide_start_s": draw.uniform(0.2, 2.4),
        "glide_s": draw.choice(0, 0, 1) * draw.uniform(0.4, 1.1),
        "speed_m_s": draw.uniform(6, 13),
        "aspect_deg": draw.choice(-1, 1) * draw.uniform(72, 108),
        "climb_deg": draw.uniform(-8, 8),
        "bob_m": draw.uniform(0.01, 0.03),
        "distance_m": draw.uniform(40, 120),
        "elevation_deg": draw.uniform(25, 60),
    }


def bird_echo(p: dict, sensor: Sensor, time_s: np.ndarray) -> np.ndarray:
    """Three points on each segment of the wings, and body, head and tail on the line of flight."""
    wing = Wing(**{name: p[name] for name in Wing.__dataclass_fields__})
    fade_s = 0.5 / p["flap_hz"]
    glide_end = p["glide_start_s"] + p["glide_s"]
    still = minimum_jerk((time_s - p["glide_start_s"]) / fade_s) - minimum_jerk((time_s - glide_end) / fade_s)
    gain = 1 - still if p["glide_s"] else np.ones_like(time_s)
    cycles = p["flap_phase"] + p["flap_hz"] * time_s
    elbow, tip = wing.joints(cycles, gain)

    middle = time_s - time_s[-1] / 2
    climb = np.radians(p["climb_deg"])
    bob = -p["bob_m"] * gain * np.cos(2 * np.pi * cycles)
    flight = p["speed_m_s"] * np.array([np.cos(climb), 0, np.sin(climb)])[:, None] * middle
    flight[2] += bob
    parts = np.array([0.35, 0.7, 1.0])[:, None, None, None]
    wings = np.concatenate([parts * elbow, elbow + parts * (tip - elbow)]).reshape(12, 3, -1)
    trunk = np.array([[0.0, 0, 0], [0.12, 0, 0.02], [-0.15, 0, 0]])[..., None] + 0 * time_s
    elevation = np.radians(p["elevation_deg"])
    below = p["distance_m"] * np.sin(elevation)
    radar = radar_position(p["distance_m"] * np.cos(elevation), p["aspect_deg"], -below)
    share = 10 ** (p["wing_to_body_db"] / 10) / 12
    rcs = np.array([0.8, 0.1, 0.1] + 12 * [share])[:, None]
    return point_echo(np.concatenate([trunk, wings]) + flight, rcs, radar, sensor.wavelength_m)


TARGETS = {
    "walking": Target(walking_group, walking_image, walking_echo),
    "drone": Target(drone_group, drone_image, drone_echo),
    "bird": Target(bird_group, bird_image, bird_echo),
    "arm_swing": Target(arm_swing_group, arm_swing_image, arm_swing_echo, snr_db=(24, 38)),
    "fall": Target(fall_group, fall_image, fall_echo, snr_db=(12, 28)),
    "sit_down": Target(sitting_group, sitting_image, sitting_echo, snr_db=(12, 28)),
    "stand_up": Target(sitting_group, sitting_image, standing_up_echo, snr_db=(12, 28)),
}
