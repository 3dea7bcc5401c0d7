"""The echo of an extended body: every segment as many scatterers over its surface, some of them hidden.

A segment is the prolate ellipsoid of `echo.ellipsoid_rcs`. What the whole segment returns is shared among the
scatterers that face the radar, by the squared cosine of incidence; their cross-sections fluctuate (Swerling I, with a
correlation time), other segments hide them, and cloth and breath move them along the normal. Floor and side walls add
paths by way of mirror images of the radar. A radar that sweeps sees the ranges around the body in gates of their own.
With one still scatterer a segment and nothing around, all this is the echo of ellipsoids in closed form.

The cost is linear in scatterers and pulses. Positions are computed some 400 times a second, amplitudes 50 times;
between them path lengths follow parabolas, as products of phasors, and amplitudes follow lines.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from scipy import signal

from mdaug.radar.echo import ellipsoid_rcs
from mdaug.radar.sensor import Sensor

Segments = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Start (S, 3, N), end (S, 3, N) and radius (S,) in m."""

KNOT_HZ = 400.0
"""Least rate of positions: an acceleration that changes by 100 m/s^2 moves a foot by 80 um within a knot."""
KNOTS = 8  # from one amplitude to the next
CHUNK = 16  # amplitudes whose pulses are computed at once, for the cache
GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
BOUNCES = 3  # one scatterer in so many is also seen by way of floor and walls
EDGE_M = 0.03
"""Half width of the edge of a shadow: the first Fresnel zone between limbs, sqrt(lambda d), at 77 GHz."""
FAINT = 1e-3  # amplitude over the largest, below which a scatterer is left out


@dataclass(frozen=True)
class Surface:
    """What covers a body and what stands around it. By default there is nothing around, and nothing stirs."""

    scatterers: int = 240
    """On all segments together, shared by area, at least 4 each; 0: one in the middle of each segment."""
    roughness: float = 0.0
    """Part of the power that a segment scatters into all directions, as cloth does, rather than as a mirror."""
    scintillation_s: float = 0.0
    """Correlation time of the fluctuation of one scatterer; 0: none."""
    clothing_mm: float = 0.0
    """Standard deviation of the movement of cloth along the normal."""
    clothing_hz: float = 2.0
    """Bandwidth of that movement."""
    breathing_mm: float = 0.0
    """Amplitude of the surface of the trunk, the segment of the largest radius."""
    breathing_hz: float = 0.25
    floor_db: float = -np.inf
    """Power that the floor at z = 0 reflects."""
    wall_db: float = -np.inf
    """Power that a side wall reflects."""
    left_m: float = np.inf
    """Distance of the wall on the left (+y) from the x axis."""
    right_m: float = np.inf
    """Distance of the wall on the right."""
    surface_seed: int = 0
    """Of fluctuation, cloth and the phase of the breath."""

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
        motion: times (N,) in s -> segments, which keep their lengths.
        time_s: (N,) times of the pulses, at equal steps.
        radar: (3,) position in m.
        sensor: wavelength, range bins and gates.
        surface: what covers the body and stands around it.

    Returns:
        complex64 (gates, N). The gates lie side by side around the mean range of the power that comes straight back.
    """
    # Knots for positions, from one before the first pulse; every eighth is one for amplitudes.
    step_s = (time_s[-1] - time_s[0]) / (len(time_s) - 1)
    per_knot = max(1, int(1 / (step_s * KNOT_HZ)))
    intervals = -(-len(time_s) // (per_knot * KNOTS))
    knots = time_s[0] + step_s * per_knot * np.arange(-1, intervals * KNOTS + 2)
    start, end, radius = motion(knots)
    slow = slice(1, None, KNOTS)
    body = _Body(start[..., 0], end[..., 0], radius, surface.scatterers)
    rng = np.random.default_rng(surface.surface_seed)

    # Amplitudes at the slow knots. What the radar hardly sees in all that time is left out.
    amplitude = _amplitudes(body, start[..., slow], end[..., slow], radar, surface.roughness)
    seen = np.flatnonzero(amplitude.max(axis=1) > FAINT * amplitude.max())
    amplitude *= _fluctuation(rng, amplitude.shape, step_s * per_knot * KNOTS, surface.scintillation_s)
    offset = _offsets(rng, body, knots, surface)[seen]
    body, amplitude = body.only(seen), amplitude[seen]

    # Routes: straight there and back, and by way of each mirror, which takes either way first: twice the amplitude.
    frames = body.frames(start, end)
    there = _ranges(body, frames, offset, radar)
    some = np.arange(0, len(seen), BOUNCES)
    bouncing = body.only(some)
    routes = [(there, there, amplitude)]
    for image, part in surface.mirrors(radar):
        back = _ranges(bouncing, frames, offset[some], image)
        routes.append((there[some], back, 2 * part * np.sqrt(BOUNCES) * amplitude[some]))
    both_ways = np.concatenate([there + back for there, back, _ in routes])
    gains = np.concatenate([gain / (there[:, slow] * back[:, slow]) for there, back, gain in routes])
    middle = np.average(there[:, slow], axis=0, weights=gains[: len(seen)] ** 2)
    gated = _gates(both_ways[:, slow] / 2 - middle, gains, sensor)

    # Pulses, some amplitudes at a time.
    echo = np.empty((sensor.gates, intervals, KNOTS, per_knot), np.complex64)
    for first in range(0, intervals, CHUNK):
        last = min(first + CHUNK, intervals)
        cycles = both_ways[:, first * KNOTS : last * KNOTS + 3] / sensor.wavelength_m
        echo[:, first:last] = _sum_phasors(cycles, gated[:, :, first : last + 1], per_knot)
    return echo.reshape(sensor.gates, -1)[:, : len(time_s)]


class _Body:
    """Scatterers on segments: places on spirals over the ellipsoids, and the normals there."""

    def __init__(self, start: np.ndarray, end: np.ndarray, radius: np.ndarray, scatterers: int):
        """Take ends (segments, 3) at one time, radii (segments,) and the number of scatterers; see `Surface`."""
        self.radius = radius
        self.half = np.linalg.norm(end - start, axis=1) / 2
        self.points = scatterers == 0
        # As many on each as its area asks for.
        area = radius * np.maximum(self.half, radius)
        counts = np.maximum(4, np.round(scatterers * area / area.sum())).astype(int)
        counts = np.ones_like(counts) if self.points else counts
        number = np.concatenate([np.arange(count) for count in counts])
        self.segment = np.repeat(np.arange(len(radius)), counts)
        along, around = (2 * number + 1) / counts[self.segment] - 1, GOLDEN_ANGLE * number
        # Of each, in the directions of `_frames`: its place, and the normal there.
        circle = np.stack([np.cos(around), np.sin(around)]) * np.sqrt(1 - along**2)
        half, radius = self.half[self.segment], radius[self.segment]
        self.place = np.stack([half * along, *((0 if self.points else 1) * radius * circle)])
        normal = np.stack([along / half, *(circle / radius)])
        self.normal = normal / np.linalg.norm(normal, axis=0)
        # Angles are counted from a direction that the segment does not take: most move in the plane of x and z.
        across = np.abs(end - start)[:, 1] > 1.4 * self.half
        self.reference = np.where(across[:, None], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])

    def only(self, which: np.ndarray) -> _Body:
        """Return the body with some of its scatterers, int (n,)."""
        other = copy.copy(self)
        other.segment, other.place, other.normal = self.segment[which], self.place[:, which], self.normal[:, which]
        return other

    def frames(self, start: np.ndarray, end: np.ndarray) -> _Frames:
        """Return where segments with ends (segments, 3, N) are."""
        axis = (end - start) / (2 * self.half[:, None, None])
        first = np.cross(axis, self.reference[..., None], axis=1)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        return _Frames((start + end) / 2, np.stack([axis, first, np.cross(axis, first, axis=1)]))

    def centre(self, frames: _Frames) -> np.ndarray:
        """Return the mean position (3, N) of the scatterers."""
        members = (self.segment == np.arange(len(self.radius))[:, None]) / len(self.segment)
        inside = np.einsum("kn,sn->ks", self.place, members)
        middle = np.einsum("s,scN->cN", members.sum(axis=1), frames.middle)
        return middle + np.einsum("ks,kscN->cN", inside, frames.directions)

    def along(self, part: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Return the products (n, N) of `place` or `normal` with the vectors (3, segments, N) of their segments."""
        x, y, z = vectors[:, self.segment]
        return part[0, :, None] * x + part[1, :, None] * y + part[2, :, None] * z


@dataclass(frozen=True)
class _Frames:
    """Where segments are: their middles (segments, 3, N) in m, and their three directions (3, segments, 3, N)."""

    middle: np.ndarray
    directions: np.ndarray

    def components(self, vectors: np.ndarray) -> np.ndarray:
        """Return the components (3, segments, N) of vectors (segments or 1, 3, N) along the three directions."""
        return (self.directions * vectors).sum(axis=2)


def _amplitudes(body: _Body, start: np.ndarray, end: np.ndarray, radar: np.ndarray, roughness: float) -> np.ndarray:
    """Return square roots of the cross-sections, (scatterers, N) in m, before they fluctuate."""
    # Of whole segments; a rough sphere that absorbs nothing has 8/3 of the cross-section of its disc (Lambert).
    half, radius, frames = body.half[:, None], body.radius[:, None], body.frames(start, end)
    sight = radar[:, None] - frames.middle
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    sight = frames.components(sight)
    mirror = ellipsoid_rcs(sight[0], half, radius)
    if body.points:
        return np.sqrt(mirror)
    disc = np.pi * radius * np.sqrt(radius**2 * sight[0] ** 2 + half**2 * (1 - sight[0] ** 2))
    rcs = (1 - roughness) * mirror + roughness * 8 / 3 * disc
    # Shares of those scatterers that face the radar.
    share = np.maximum(body.along(body.normal, sight), 0) ** 2
    total = np.add.reduceat(share, np.searchsorted(body.segment, np.arange(len(rcs))), axis=0)
    share /= np.maximum(total, 1e-12)[body.segment]
    amplitude = np.sqrt(share * rcs[body.segment])
    # Some of these are hidden.
    facing = np.flatnonzero(amplitude.any(axis=1))
    amplitude[facing] *= _light(body.only(facing), frames, start, end, radar[:, None] - body.centre(frames))
    return amplitude


def _light(body: _Body, frames: _Frames, start: np.ndarray, end: np.ndarray, sight: np.ndarray) -> np.ndarray:
    """Return the part (scatterers, N) of the amplitude that other segments, with ends (segments, 3, N), let through.

    Segments are rods of their radius that cast shadows along parallel lines of sight (3, N); diffraction softens the
    edges.
    """
    # Coordinates along the line of sight, and in two directions across it.
    toward = sight / np.linalg.norm(sight, axis=0)
    side = np.cross(toward, np.eye(3)[np.abs(toward).mean(axis=1).argmin()], axis=0)
    side /= np.linalg.norm(side, axis=0)
    view = np.stack([toward, side, np.cross(toward, side, axis=0)])
    depth, x, y = (
        np.einsum("skn,kn->sn", frames.middle, axis)[body.segment] + body.along(body.place, frames.components(axis))
        for axis in view
    )
    through = np.ones_like(depth)
    feet, tops = (np.einsum("skn,akn->san", ends, view) for ends in (start, end))
    for number, (foot, top, radius) in enumerate(zip(feet, tops, body.radius, strict=True)):
        # Where the line of sight from each scatterer passes the axis of the rod.
        rise, across, up = top - foot
        from_x, from_y = x - foot[1], y - foot[2]
        part = np.clip((from_x * across + from_y * up) / np.maximum(across**2 + up**2, 1e-9), 0, 1)
        before = (part * rise + foot[0] - depth > radius) & (body.segment != number)[:, None]
        miss = np.sqrt((from_x - part * across) ** 2 + (from_y - part * up) ** 2)
        through *= 1 - np.clip(0.5 + (radius - miss) / (2 * EDGE_M), 0, 1) * before
    return through


def _ranges(body: _Body, frames: _Frames, offset: np.ndarray, radar: np.ndarray) -> np.ndarray:
    """Return distances (scatterers, N) in m from a point (3,), of scatterers moved along their normals by `offset`."""
    # |sight - place - offset normal|^2 in the directions of a segment; the first and the last stretch with it.
    sight = radar[:, None] - frames.middle
    far, stretch = np.square(sight).sum(axis=1), np.square(frames.directions[0]).sum(axis=1)
    terms = np.stack([*frames.components(sight), stretch, far, np.ones_like(far)])
    squares, products = np.square(body.place), 2 * body.place * body.normal
    one = np.ones(len(body.segment))
    still = np.stack([*(-2 * body.place), squares[0] + squares[2], one, squares[1]])
    moved = np.stack([*(-2 * body.normal), products[0] + products[2], 0 * one, products[1]])
    both = np.stack([still, moved])
    ranges = np.empty_like(offset)
    for number in np.unique(body.segment):
        of = slice(*np.searchsorted(body.segment, [number, number + 1]))
        square, slope = np.tensordot(both[..., of], terms[:, number], (1, 0))
        slope += offset[of]
        slope *= offset[of]
        square += slope
        np.sqrt(square, out=ranges[of])
    return ranges


def _fluctuation(
    rng: np.random.Generator, shape: tuple[int, int], step_s: float, correlation_s: float
) -> np.ndarray | float:
    """Return amplitudes (n, N) whose squares are exponential with mean 1, correlated over time as exp(-t / tau)."""
    if correlation_s == 0:
        return 1.0
    keep = np.exp(-step_s / correlation_s)
    noise = rng.standard_normal((2, *shape)) * np.sqrt((1 - keep) / 2)
    noise[..., 0] /= np.sqrt(1 - keep)
    # The power of complex noise keeps the square of what its amplitude keeps.
    keep = np.sqrt(keep)
    return np.hypot(*signal.lfilter([1], [1, -keep], noise, axis=-1))


def _offsets(rng: np.random.Generator, body: _Body, knots: np.ndarray, surface: Surface) -> np.ndarray:
    """Return offsets (scatterers, knots) in m along the normals: of cloth everywhere, and of the breathing trunk."""
    breath = 1e-3 * surface.breathing_mm * np.sin(2 * np.pi * (surface.breathing_hz * knots + rng.uniform()))
    offset = (body.segment == np.argmax(body.radius))[:, None] * breath
    if surface.clothing_mm == 0:
        return offset
    rate = 1 / (knots[1] - knots[0])
    sections = signal.butter(2, surface.clothing_hz, fs=rate, output="sos")
    lead = int(rate / surface.clothing_hz)
    moved = signal.sosfilt(sections, rng.standard_normal((len(offset), lead + len(knots))), axis=-1)[:, lead:]
    return offset + moved * (1e-3 * surface.clothing_mm / moved.std())


def _gates(beyond_m: np.ndarray, amplitude: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return amplitudes (n, N), at ranges beyond that of the middle gate, as each gate sees them.

    Returns float32 (gates, n, N).

    The gate is the main lobe of a Hann-windowed sweep, near enough a raised cosine that is zero two bins away.
    """
    if sensor.range_bin_m is None:
        return amplitude[None].astype(np.float32)
    gate = np.arange(sensor.gates)[:, None, None] - (sensor.gates - 1) / 2
    bins = np.clip(beyond_m / sensor.range_bin_m - gate, -2, 2)
    return (amplitude * np.cos(np.pi / 4 * bins) ** 2).astype(np.float32)


def _sum_phasors(cycles: np.ndarray, amplitude: np.ndarray, per_knot: int) -> np.ndarray:
    """Return complex64 (gates, intervals, KNOTS, per_knot), the sum of the scatterers' phasors.

    Args:
        cycles: (n, intervals x KNOTS + 3) two-way path in wavelengths at the knots, from one before the first.
        amplitude: float32 (gates, n, intervals + 1) at every eighth knot.
        per_knot: pulses from one knot to the next.
    """
    gates, count, intervals = len(amplitude), len(cycles), amplitude.shape[2] - 1
    # From knot to knot a parabola through both, with the mean of the curvatures there.
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

    turn, faster = phasor(slope / per_knot + curvature / (2 * per_knot**2)), phasor(curvature / per_knot**2)
    pulses = np.empty((per_knot, intervals, count, KNOTS), np.complex64)
    pulses[0] = phasor(here)
    for pulse in range(1, per_knot):
        np.multiply(pulses[pulse - 1], turn, out=pulses[pulse])
        if pulse + 1 < per_knot:
            np.multiply(turn, faster, out=turn)

    # Amplitude at the beginning of an interval, and its change along it.
    weights = np.concatenate([amplitude[..., :-1], np.diff(amplitude, axis=2)]).transpose(2, 0, 1)
    sums = (np.ascontiguousarray(weights) @ pulses.view(np.float32)).view(np.complex64)
    part = ((np.arange(KNOTS) + np.arange(per_knot)[:, None] / per_knot) / KNOTS).astype(np.float32)
    return (sums[:, :, :gates] + part[:, None, None] * sums[:, :, gates:]).transpose(2, 1, 3, 0)
