"""Recordings of a radar that sweeps its frequency, and the table of an image folder, for the tests of mdaug/radar."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mdaug.radar.sensor import SPEED_OF_LIGHT_M_S

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
