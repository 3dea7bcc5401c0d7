"""The echo of an extended body: every segment as many scatterers over its surface, some of them hidden.

A segment is the prolate ellipsoid of `echo.ellipsoid_rcs`. What that gives for the whole segment is shared among
scatterers on the side that faces the radar: the share of one goes with the cosine of incidence squared, its power
fluctuates (Swerling I with a correlation time), other segments before it hide it, and cloth and breath move it along
the normal. Floor and side walls add paths by mirror images of the radar. A radar with bandwidth sees the ranges around
the body in gates of their own. One still scatterer per segment, without walls, is `echo.ellipsoid_echo`.

Cost is linear in scatterers and pulses. Positions are computed some 400 times a second and amplitudes 50 times;
between them path lengths follow parabolas, as products of phasors, and amplitudes follow lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from scipy import signal

from mdaug.radar.echo import ellipsoid_rcs
from mdaug.radar.sensor import Sensor

Segments = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Start (S, 3, N), end (S, 3, N) and radius (S,) in m."""

KNOT_HZ = 400.0
"""Least rate of positions. A foot changes its acceleration by 100 m/s^2 within a step: 10 um at this rate."""
KNOTS = 8  # from one amplitude to the next
CHUNK = 16  # amplitudes that are computed at once, for the cache
GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
BOUNCES = 3  # one scatterer in so many is also seen by way of floor and walls


@dataclass(frozen=True)
class Surface:
    """What covers a body and what stands around it."""

    scatterers: int = 160
    """On all segments together, shared by area; 0: one in the middle of each segment."""
    roughness: float = 0.0
    """Part of the power that a segment scatters into all directions, as cloth does, and not like a mirror."""
    scintillation_s: float = 0.0
    """Correlation time of the fluctuation of one scatterer; 0: none."""
    clothing_mm: float = 0.0
    """Standard deviation of the movement of cloth along the normal."""
    clothing_hz: float = 2.0
    """Bandwidth of that movement."""
    breathing_mm: float = 0.0
    """Amplitude of the trunk's surface."""
    breathing_hz: float = 0.25
    floor_db: float = -np.inf
    """Power that the floor reflects."""
    wall_db: float = -np.inf
    """Power that a side wall reflects."""
    left_m: float = np.inf
    """Distance of the wall on the left (+y) from the line of walking."""
    right_m: float = np.inf
    """Distance of the wall on the right."""
    surface_seed: int = 0
    """Of fluctuation and cloth."""

    @classmethod
    def of(cls, parameters: dict) -> Surface:
        """Build a surface from those entries of `parameters` that are named after its fields."""
        given = {field.name: parameters[field.name] for field in fields(cls) if field.name in parameters}
        return cls(**given | {name: int(given[name]) for name in ("scatterers", "surface_seed") if name in given})

    def mirrors(self, radar: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """Return the images (3,) of a radar in floor and walls, and the amplitude that each of them reflects."""
        x, y, z = radar
        images = [
            (np.array([x, y, -z]), self.floor_db),
            (np.array([x, 2 * self.left_m - y, z]), self.wall_db),
            (np.array([x, -2 * self.right_m - y, z]), self.wall_db),
        ]
        return [(image, 10 ** (db / 20)) for image, db in images if np.isfinite(db) and np.isfinite(image).all()]


def body_echo(
    motion: Callable[[np.ndarray], Segments], time_s: np.ndarray, radar: np.ndarray, sensor: Sensor, surface: Surface
) -> np.ndarray:
    """Return the echo of a moving body in each range gate, on the scale of `echo.point_echo`.

    Args:
        motion: times (N,) in s -> segments.
        time_s: (N,) times of the pulses, at equal steps.
        radar: (3,) position in m.
        sensor: wavelength, range resolution and gates.
        surface: what covers the body and stands around it.

    Returns:
        complex64 (gates, N). The gates lie side by side around the mean range of the echo's power.
    """
    # Knots for positions, two of them outside of every interval, and every eighth for amplitudes.
    step_s = (time_s[-1] - time_s[0]) / (len(time_s) - 1)
    per_knot = max(1, int(1 / (step_s * KNOT_HZ)))
    intervals = -(-len(time_s) // (per_knot * KNOTS))
    knots = time_s[0] + step_s * per_knot * np.arange(-1, intervals * KNOTS + 2)
    start, end, radius = motion(knots)
    slow = slice(1, None, KNOTS)
    body = _Body(start[..., slow], end[..., slow], radius, surface)

    # Amplitudes, for all scatterers and then for those that are seen at all.
    rng = np.random.default_rng(surface.surface_seed)
    amplitude = body.share(radar) * _fluctuation(rng, len(body.segment), intervals + 1, step_s * per_knot * KNOTS, surface)
    seen = np.flatnonzero(amplitude.max(axis=1) > 1e-3 * amplitude.max())
    cloth = _cloth(rng, body, knots, surface)[seen]
    amplitude = amplitude[seen]
    routes = [(radar, radar, np.arange(len(seen)), 1.0)]
    for image, reflected in surface.mirrors(radar):
        # There by way of the mirror and straight back, and the other way round: twice the amplitude.
        some = np.arange(0, len(seen), BOUNCES)
        routes.append((radar, image, some, 2 * reflected * np.sqrt(BOUNCES)))
    place = body.places(start[..., slow], end[..., slow], seen) + cloth[:, None, slow] * body.normals(seen)
    length, gain = [], []
    for there, back, which, factor in routes:
        one, other = _distance(place[which], there), _distance(place[which], back)
        length.append((one + other) / 2)
        gain.append(factor * amplitude[which] / (one * other))
    direct = gain[0] ** 2
    centre = (direct * length[0]).sum(axis=0) / direct.sum(axis=0)
    gated = _gates(np.concatenate(length) - centre, np.concatenate(gain), sensor)

    # Phasors, chunk by chunk.
    echo = np.empty((sensor.gates, intervals, KNOTS, per_knot), np.complex64)
    for first in range(0, intervals, CHUNK):
        last = min(first + CHUNK, intervals)
        part = slice(first * KNOTS, last * KNOTS + 3)
        at = body.places(start[..., part], end[..., part], seen, normal_offset=cloth[:, part])
        path = [(_distance(at[which], there) + _distance(at[which], back)) / 2 for there, back, which, _ in routes]
        echo[:, first:last] = _sum_phasors(
            np.concatenate(path) * (2 / sensor.wavelength_m), gated[:, :, first : last + 1], per_knot
        )
    return echo.reshape(sensor.gates, -1)[:, : len(time_s)]


class _Body:
    """Scatterers on the segments, and how the radar sees them at the times of the amplitudes."""

    def __init__(self, start: np.ndarray, end: np.ndarray, radius: np.ndarray, surface: Surface):
        self.start, self.end, self.radius, self.roughness = start, end, radius, surface.roughness
        half = np.linalg.norm(end[..., 0] - start[..., 0], axis=1) / 2
        self.half = half
        self.trunk = int(np.argmax(radius))
        # Scatterers along a spiral over each ellipsoid, as many as its area asks for.
        area = radius * np.maximum(half, radius)
        counts = np.maximum(4, np.round(surface.scatterers * area / area.sum())).astype(int)
        self.points = surface.scatterers == 0
        counts = np.ones_like(counts) if self.points else counts
        self.segment = np.repeat(np.arange(len(radius)), counts)
        number = np.concatenate([np.arange(count) for count in counts])
        self.along = (2 * number + 1) / np.repeat(counts, counts) - 1
        self.around = GOLDEN_ANGLE * number
        # A direction that no segment of this kind takes, from which the spiral starts.
        across = np.abs(start[:, 1] - end[:, 1]).mean(axis=1) > 1.4 * half
        self.reference = np.where(across[:, None], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])

    def frames(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return axis and two directions across it, (segments, 3, N) each, of length 1."""
        axis = (end - start) / (2 * self.half[:, None, None])
        first = np.cross(axis, self.reference[..., None], axis=1)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        return axis, first, np.cross(axis, first, axis=1)

    def normals(self, which: np.ndarray) -> np.ndarray:
        return self._normals(*self.frames(self.start, self.end), which)

    def _normals(self, axis: np.ndarray, first: np.ndarray, second: np.ndarray, which: np.ndarray) -> np.ndarray:
        of = self.segment[which]
        ring = np.sqrt(1 - self.along[which] ** 2) / self.radius[of]
        lengthwise = self.along[which] / self.half[of]
        size = np.hypot(ring, lengthwise)
        parts = (lengthwise, ring * np.cos(self.around[which]), ring * np.sin(self.around[which]))
        return sum((part / size)[:, None, None] * vector[of] for part, vector in zip(parts, (axis, first, second)))

    def places(
        self, start: np.ndarray, end: np.ndarray, which: np.ndarray, normal_offset: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the positions (scatterers, 3, N) in m, moved along their normals by the offsets (scatterers, N)."""
        middle = (start + end) / 2
        of = self.segment[which]
        if self.points:
            return middle[of]
        axis, first, second = self.frames(start, end)
        ring = self.radius[of] * np.sqrt(1 - self.along[which] ** 2)
        parts = (self.half[of] * self.along[which], ring * np.cos(self.around[which]), ring * np.sin(self.around[which]))
        place = middle[of]
        for part, vector in zip(parts, (axis, first, second), strict=True):
            place = place + part[:, None, None] * vector[of]
        if normal_offset is not None:
            place += normal_offset[:, None] * self._normals(axis, first, second, which)
        return place

    def share(self, radar: np.ndarray) -> np.ndarray:
        """Return the amplitudes (scatterers, N): square roots of cross-sections in m, without their fluctuation."""
        middle = (self.start + self.end) / 2
        sight = radar[:, None] - middle
        sight /= np.linalg.norm(sight, axis=1, keepdims=True)
        axis = (self.end - self.start) / (2 * self.half[:, None, None])
        cos_angle = np.einsum("skn,skn->sn", axis, sight)
        rcs = ellipsoid_rcs(cos_angle, self.half[:, None], self.radius[:, None])
        if self.points:
            return np.sqrt(rcs)
        # A rough sphere that absorbs nothing has 8/3 of the cross-section of its disc (Lambert).
        half, radius = self.half[:, None], self.radius[:, None]
        disc = np.pi * radius * np.sqrt(radius**2 * cos_angle**2 + half**2 * (1 - cos_angle**2))
        rcs = (1 - self.roughness) * rcs + self.roughness * 8 / 3 * disc
        every = np.arange(len(self.segment))
        incidence = np.einsum("skn,skn->sn", self.normals(every), sight[self.segment])
        weight = np.maximum(incidence, 0) ** 2
        total = np.zeros_like(rcs)
        np.add.at(total, self.segment, weight)
        return np.sqrt(weight / np.maximum(total, 1e-12)[self.segment] * rcs[self.segment]) * self.light(radar)

    def light(self, radar: np.ndarray) -> np.ndarray:
        """Return the part (scatterers, N) of the amplitude that other segments let through.

        Segments cast shadows along parallel lines of sight. Diffraction softens their edges over the radius of the
        first Fresnel zone at the distances between limbs, some 3 cm at 77 GHz.
        """
        every = np.arange(len(self.segment))
        place = self.places(self.start, self.end, every)
        toward = radar[:, None] - place.mean(axis=0)
        toward /= np.linalg.norm(toward, axis=0)
        through = np.ones((len(every), place.shape[2]))
        for number in range(len(self.radius)):
            # Nearest point of the segment's axis to the line of sight.
            axis = self.end[number] - self.start[number]
            flat_axis = axis - toward * np.einsum("kn,kn->n", axis, toward)
            offset = place - self.start[number]
            depth = np.einsum("skn,kn->sn", offset, toward)
            flat = offset - depth[:, None] * toward
            part = np.einsum("skn,kn->sn", flat, flat_axis) / np.maximum(np.einsum("kn,kn->n", flat_axis, flat_axis), 1e-9)
            part = np.clip(part, 0, 1)
            miss = np.linalg.norm(flat - part[:, None] * flat_axis, axis=1)
            before = part * np.einsum("kn,kn->n", axis, toward) - depth > self.radius[number]
            hidden = np.clip(0.5 + (self.radius[number] - miss) / (2 * EDGE_M), 0, 1) * before
            through *= 1 - hidden * (self.segment != number)[:, None]
        return through


EDGE_M = 0.03


def _distance(place: np.ndarray, radar: np.ndarray) -> np.ndarray:
    """Return distances (S, N) of places (S, 3, N) from a point."""
    x, y, z = place[:, 0] - radar[0], place[:, 1] - radar[1], place[:, 2] - radar[2]
    return np.sqrt(x * x + y * y + z * z)


def _fluctuation(rng: np.random.Generator, count: int, times: int, step_s: float, surface: Surface) -> np.ndarray:
    """Return amplitudes (count, times) whose squares are exponential with mean 1: Swerling I, correlated in time."""
    if surface.scintillation_s == 0:
        return np.ones((count, times))
    keep = np.exp(-step_s / surface.scintillation_s)
    noise = rng.standard_normal((2, count, times)) * np.sqrt((1 - keep**2) / 2)
    noise[..., 0] /= np.sqrt(1 - keep**2)
    return np.hypot(*signal.lfilter([1], [1, -keep], noise, axis=-1))


def _cloth(rng: np.random.Generator, body: _Body, knots: np.ndarray, surface: Surface) -> np.ndarray:
    """Return the offsets (scatterers, knots) in m along the normals: cloth everywhere, and the breathing trunk."""
    breath = 1e-3 * surface.breathing_mm * np.sin(2 * np.pi * (surface.breathing_hz * knots + rng.uniform()))
    offset = np.where(body.segment == body.trunk, 1.0, 0.0)[:, None] * breath
    if surface.clothing_mm == 0:
        return offset
    rate = 1 / (knots[1] - knots[0])
    sections = signal.butter(2, surface.clothing_hz, fs=rate, output="sos")
    lead = int(rate / surface.clothing_hz)
    noise = rng.standard_normal((len(offset), lead + len(knots)))
    moved = signal.sosfilt(sections, noise, axis=-1)[:, lead:]
    return offset + moved * (1e-3 * surface.clothing_mm / moved.std())


def _gates(offset_m: np.ndarray, amplitude: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return amplitudes (S, N), at these offsets in range from the middle gate, as each gate sees them: float32 (gates, S, N)."""
    if sensor.range_bin_m is None:
        return amplitude[None].astype(np.float32)
    offset = offset_m / sensor.range_bin_m
    gate = np.arange(sensor.gates)[:, None, None] - (sensor.gates - 1) / 2
    # Main lobe of a Hann-windowed sweep: a raised cosine, zero two bins away.
    return (amplitude * np.cos(np.pi / 4 * np.clip(offset - gate, -2, 2)) ** 2).astype(np.float32)


def _sum_phasors(cycles: np.ndarray, amplitude: np.ndarray, per_knot: int) -> np.ndarray:
    """Return complex64 (gates, intervals, KNOTS, per_knot), the sum of the scatterers' phasors.

    Args:
        cycles: (S, intervals x KNOTS + 3) two-way path in wavelengths at the knots, from one before the first.
        amplitude: float32 (gates, S, intervals + 1) at every eighth knot.
        per_knot: pulses from one knot to the next.
    """
    gates, count, intervals = len(amplitude), len(cycles), amplitude.shape[2] - 1
    # From knot to knot a parabola through both, with the mean of their curvatures.
    bend = np.diff(cycles, 2, axis=1)
    curvature = (bend[:, :-1] + bend[:, 1:]) / 2
    here = cycles[:, 1:-2]
    slope = cycles[:, 2:-1] - here - curvature / 2

    def phasor(turns: np.ndarray) -> np.ndarray:
        angle = (-2 * np.pi * (turns - np.rint(turns))).astype(np.float32)
        value = np.empty(angle.shape, np.complex64)
        np.cos(angle, out=value.real)
        np.sin(angle, out=value.imag)
        return np.ascontiguousarray(value.reshape(count, intervals, KNOTS).swapaxes(0, 1))

    now, turn = phasor(here), phasor(slope / per_knot + curvature / (2 * per_knot**2))
    faster = phasor(curvature / per_knot**2)
    pulses = np.empty((per_knot, intervals, count, KNOTS), np.complex64)
    for pulse in range(per_knot):
        pulses[pulse] = now
        np.multiply(now, turn, out=now)
        np.multiply(turn, faster, out=turn)

    # Amplitudes at the beginning of an interval, and their change along it.
    begin, change = amplitude[..., :-1], np.diff(amplitude, axis=2)
    weights = np.ascontiguousarray(np.concatenate([begin, change]).transpose(2, 0, 1))
    sums = (weights @ pulses.view(np.float32)).view(np.complex64)  # (pulses, intervals, 2 gates, KNOTS)
    part = ((np.arange(KNOTS) + np.arange(per_knot)[:, None] / per_knot) / KNOTS).astype(np.float32)
    total = sums[:, :, :gates] + part[:, None, None] * sums[:, :, gates:]
    return total.transpose(2, 1, 3, 0)
