"""Drones and birds: bodies, rotors, wings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdaug.radar.body import SIDES
from mdaug.radar.echo import point_echo
from mdaug.radar.fall import minimum_jerk
from mdaug.radar.parameters import Draw, Parameters, radar_position
from mdaug.radar.sensor import Sensor


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
        turns = (
            rate * (time_s + p["drift"] / drift * np.sin(drift * time_s + rng.uniform(0, 2 * np.pi))) + rng.uniform()
        )
        hub = p["arm_m"] * np.cos(elevation) * np.cos(2 * np.pi * rotor / rotors + rng.uniform(0, 0.1))
        spin = 1 if rotor % 2 else -1  # a rotor that turns the other way has the mirrored comb
        phase = np.exp(4j * np.pi / sensor.wavelength_m * hub)
        received += phase * rotor_echo_in_band(turns, (spin * lines[0], lines[1]), blades, orders)
    return received * np.exp(4j * np.pi / sensor.wavelength_m * path)


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


@dataclass(frozen=True)
class Wing:
    """Both wings, mirrored. Angles in degrees, lengths in m."""

    inner_m: float = 0.25
    outer_m: float = 0.25
    flap_hz: float = 4.0
    inner_amplitude_deg: float = 40.0
    inner_offset_deg: float = 15.0
    outer_amplitude_deg: float = 30.0
    outer_offset_deg: float = 40.0
    twist_deg: float = 20.0

    def joints(self, cycles: np.ndarray, gain: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return elbow and tip (2, 3, N) in m relative to the shoulder; x is forward, y left, z up.

        psi1 = A1 cos(2 pi f t) + psi10 lifts the inner segment, psi2 = A2 cos(2 pi f t) + psi20 bends the outer one
        down against it, and a twist C2 sin(2 pi f t) sweeps the tip fore and aft. The elbow moves at up to
        2 pi f A1 L1, the tip at up to 2 pi f (L1 A1 + L2 abs(A1 - A2)), both with the twist left out.

        Args:
            cycles: (N,) phase of the wing beat, f t for a steady beat.
            gain: (N,) factor on the amplitudes, 0 in a glide.
        """
        beat, side = gain * np.cos(2 * np.pi * cycles), SIDES[:, None]
        inner = np.radians(self.inner_amplitude_deg * beat + self.inner_offset_deg)
        outer = inner - np.radians(self.outer_amplitude_deg * beat + self.outer_offset_deg)
        twist = np.radians(self.twist_deg) * gain * np.sin(2 * np.pi * cycles)
        zero = np.zeros((2, len(cycles)))
        elbow = self.inner_m * np.stack([zero, side * np.cos(inner), zero + np.sin(inner)], axis=1)
        reach = np.cos(twist)  # keeps the length of the outer segment whatever the twist
        tip = self.outer_m * np.stack(
            [zero + np.sin(twist), side * reach * np.cos(outer), zero + reach * np.sin(outer)], axis=1
        )
        return elbow, elbow + tip


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
