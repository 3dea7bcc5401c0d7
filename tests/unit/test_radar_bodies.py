"""Every body, whatever it does, has the surface of a walker: scatterers that fluctuate, hide each other and bounce."""

from __future__ import annotations

import numpy as np
import pytest

from mdaug.radar import surface
from mdaug.radar.sensor import Sensor
from mdaug.radar.targets import TARGETS, draw

BODIES = ("walking", "fall", "sit_down", "stand_up", "arm_swing")
SENSOR = Sensor(duration_s=2.0)


def echo(name: str, **changes) -> np.ndarray:
    """Return the echo (N,) of a person of a class, turned a little to the side, with some parameters changed."""
    row = draw(name, seed=0, group=1, index=11) | {"aspect_deg": 20.0} | changes
    return TARGETS[name].echo(row, SENSOR, SENSOR.time_s)[0]


def changed(one: np.ndarray, other: np.ndarray) -> float:
    """Return the power of a difference over that of an echo."""
    return float(np.mean(np.abs(one - other) ** 2) / np.mean(np.abs(one) ** 2))


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"scatterers": 0}, 0.3),
        ({"roughness": 0.0}, 0.02),
        ({"scintillation_s": 0.0}, 0.1),
        ({"surface_seed": 1}, 0.1),
        ({"clothing_mm": 0.0}, 0.01),
        ({"breathing_mm": 0.0}, 0.01),
        ({"floor_db": -np.inf}, 0.005),
        ({"wall_db": -np.inf}, 0.005),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_each_part_of_the_surface_shows_in_the_echo(name, change, least):
    assert changed(echo(name), echo(name, **change)) > least


@pytest.mark.parametrize("name", BODIES)
def test_a_body_hides_parts_of_itself(name, monkeypatch):
    """Of what faces the radar some is dark all the same; without shadows the echo is another."""
    seen = []
    light = surface._light

    def watched(*arguments):
        seen.append(light(*arguments))
        return seen[-1]

    monkeypatch.setattr(surface, "_light", watched)
    whole = echo(name)
    assert 0.01 < np.mean(seen[0] < 0.1) < 0.9
    monkeypatch.setattr(surface, "_light", lambda *arguments: np.ones_like(light(*arguments)))
    assert changed(whole, echo(name)) > 0.005


@pytest.mark.parametrize(("name", "still"), [("fall", {"start_s": 1.9}), ("sit_down", {"start_s": 1.9})])
def test_who_stands_still_scintillates_with_the_stated_time(name, still):
    """Before the movement, without cloth, breath and bounces: constant, but for the fluctuation of the scatterers.

    The echo is then a sum of many still phasors whose amplitudes fluctuate. Of one amplitude, the root of an
    exponential power, the correlation falls nearly as that of the power, exp(-t / tau): from 1 to 0.37 in tau.
    """
    quiet = {"clothing_mm": 0.0, "breathing_mm": 0.0, "floor_db": -np.inf, "wall_db": -np.inf} | still
    before = SENSOR.time_s < 1.6
    constant = echo(name, scintillation_s=0.0, **quiet)[before]
    assert np.abs(constant - constant[0]).max() < 1e-3 * np.abs(constant[0])
    courses = [echo(name, surface_seed=seed, **quiet)[before] for seed in range(30)]
    away = np.array(courses) - np.mean(courses)
    assert np.abs(away).std() > 0.05 * np.abs(np.mean(courses))
    lag = round(0.1 * SENSOR.prf_hz)
    power = np.mean(np.abs(away) ** 2)
    assert np.mean((away[:, lag:] * away[:, :-lag].conj()).real) / power == pytest.approx(np.exp(-1), abs=0.15)
    assert abs(np.mean((away[:, 5 * lag :] * away[:, : -5 * lag].conj()).real)) / power < 0.15
