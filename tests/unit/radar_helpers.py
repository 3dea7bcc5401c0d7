"""For the tests of mdaug/radar: recordings of a radar that sweeps its frequency, all amplitudes of one, the echo of
ellipsoids in closed form, the table of an image folder.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mdaug.radar.echo import ellipsoid_rcs, point_echo
from mdaug.radar.recording import Recording, Unreadable
from mdaug.radar.sensor import SPEED_OF_LIGHT_M_S
from mdaug.radar.stft import SILENT, Chain, Transform

CARRIER, PRF, PER_SWEEP, BANDWIDTH = 5.8e9, 1000.0, 128, 400e6
WAVELENGTH = SPEED_OF_LIGHT_M_S / CARRIER


def sweeps(*targets: tuple[float, float, float], seconds: float = 3.0, bandwidth: float = BANDWIDTH) -> np.ndarray:
    """Beat signal (samples of a sweep, sweeps) of targets (range in m at half time, approach in m/s, amplitude).

    The radar sweeps up: a target at distance R beats with 2 R B / c cycles a sweep and has the phase 4 pi R / lambda.
    """
    time = np.arange(round(seconds * PRF)) / PRF
    fast = np.arange(PER_SWEEP)[:, None] / PER_SWEEP
    total = np.zeros((PER_SWEEP, len(time)), complex)
    for range_m, approach_m_s, amplitude in targets:
        distance = range_m - approach_m_s * (time - seconds / 2)
        cycles = 2 * range_m * bandwidth / SPEED_OF_LIGHT_M_S
        total += amplitude * np.exp(2j * np.pi * cycles * fast + 4j * np.pi * distance / WAVELENGTH)
    return total


def write_text(path: Path, samples: np.ndarray, bandwidth: float = BANDWIDTH, extra: int = 0) -> Path:
    """An Ancortek text file, with `extra` samples of a last sweep that is not whole."""
    flat = np.concatenate([samples.T.ravel(), np.ones(extra)])
    lines = [f"{CARRIER:.6e}", "1", f"{samples.shape[0]}", f"{bandwidth:g}"]
    lines += [f"{value.real:.5f}{value.imag:+.5f}i" for value in flat]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\r\n".join(lines) + "\r\n")
    return path


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metadata.csv."""
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def velocity_over_time(recording: Recording, chain: Chain) -> np.ndarray:
    """Return all amplitudes (velocities, columns), float32, summed over ranges without their phases.

    Column k begins `settle_s + k hop_s` after the recording. Raises Unreadable as Transform does, and for a recording
    that is silent.
    """
    transform = Transform(recording, chain)
    total = np.concatenate(list(transform), axis=1)
    if total.max() <= transform.floor:
        raise Unreadable(SILENT)
    return total


def ellipsoid_echo(
    start: np.ndarray, end: np.ndarray, radius_m: np.ndarray, radar: np.ndarray, wavelength_m: float
) -> np.ndarray:
    """Return the echo of limbs: one prolate ellipsoid per segment, seen at its middle.

    Args:
        start: (S, 3, N) position in m of one end of each segment.
        end: (S, 3, N) the other end.
        radius_m: (S,) radius of each ellipsoid.
        radar: (3,) position in m.
        wavelength_m: wavelength in m.

    Returns:
        complex128 (N,), as `point_echo`.
    """
    middle, axis = (start + end) / 2, end - start
    sight = radar[:, None] - middle
    length = np.linalg.norm(axis, axis=1)
    cos_angle = np.einsum("skn,skn->sn", axis, sight) / (length * np.linalg.norm(sight, axis=1))
    rcs = ellipsoid_rcs(cos_angle, length / 2, radius_m[:, None])
    return point_echo(middle, rcs, radar, wavelength_m)
