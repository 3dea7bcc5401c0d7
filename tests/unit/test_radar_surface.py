"""The echo of extended bodies: one scatterer is a point, shadows hide, mirrors reflect, and power is kept."""

import dataclasses

import numpy as np
import pytest

from mdaug.radar import surface
from mdaug.radar.gait import Walker, ellipsoids
from mdaug.radar.sensor import Sensor
from mdaug.radar.stft import spectrogram
from mdaug.radar.surface import Surface, body_echo

from .radar_helpers import ellipsoid_echo

SENSOR = Sensor(duration_s=1.5, rows=64, columns=64)
RADAR = np.array([6.0, 0.4, 1.0])


def walk(times):
    return ellipsoids(Walker(), times)


def rods(*places, length_m=1.0, radius_m=0.06):
    """Return the motion of upright rods that stand still at places (x, y)."""

    def motion(times):
        foot = np.array([[x, y, 0.5] for x, y in places])[..., None] + np.zeros_like(times)
        return foot, foot + np.array([0, 0, length_m])[:, None], np.full(len(places), radius_m)

    return motion


@pytest.mark.parametrize("sensor", [SENSOR, dataclasses.replace(SENSOR, carrier_hz=77e9, v_max_m_s=5.0)])
def test_one_scatterer_a_segment_is_the_point_model(sensor):
    expected = ellipsoid_echo(*walk(sensor.time_s), RADAR, sensor.wavelength_m)
    echo = body_echo(walk, sensor.time_s, RADAR, sensor, Surface(scatterers=0))
    assert echo.shape == (1, len(sensor.time_s))
    assert np.abs(echo[0] - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize(("distance_m", "lowest"), [(1.2, 1.2 / np.hypot(1.2, 1.0)), (30.0, 1.0)])
def test_near_the_radar_each_part_has_the_doppler_of_its_own_angle(distance_m, lowest):
    """An upright rod of 2 m comes nearer at 1 m/s: what lies z above the radar at d / sqrt(d^2 + z^2) of that."""
    sensor = Sensor(carrier_hz=77e9, v_max_m_s=2.0, duration_s=0.15, settling_s=0.0)

    def rod(times):
        foot = np.stack([times - 0.075, 0 * times, 0 * times])[None]
        return foot, foot + np.array([0, 0, 2.0])[:, None], np.array([0.05])

    radar = np.array([distance_m, 0.0, 1.0])
    echo = body_echo(rod, sensor.time_s, radar, sensor, Surface(scatterers=400, roughness=1.0))[0]
    power = np.abs(np.fft.fft(echo * np.hanning(len(echo)), 8192)) ** 2
    velocities = np.fft.fftfreq(8192, 1 / sensor.prf_hz) * sensor.wavelength_m / 2
    strong = velocities[power > 10**-1.5 * power.max()]
    assert strong.min() == pytest.approx(lowest, abs=0.04)  # the window resolves 0.026 m/s
    assert strong.max() == pytest.approx(1.0, abs=0.04)


def test_shares_of_a_segment_add_up_to_its_cross_section():
    start, end, radius = rods((0.0, 0.0))(np.zeros(1))
    whole = surface._Body(start[..., 0], end[..., 0], radius, 0)
    parts = surface._Body(start[..., 0], end[..., 0], radius, 100)
    one, many = (surface._amplitudes(body, start, end, RADAR, roughness=0.0) for body in (whole, parts))
    assert len(many) == 100
    assert (many**2).sum() == pytest.approx((one**2).sum(), rel=1e-9)


def test_the_far_side_is_dark_and_a_rod_behind_another_is_hidden():
    start, end, radius = rods((0.5, 0.0), (-0.5, 0.0))(np.zeros(1))
    body = surface._Body(start[..., 0], end[..., 0], radius, 200)
    radar = np.array([8.0, 0.0, 1.0])
    amplitude = surface._amplitudes(body, start, end, radar, roughness=0.0)[:, 0]
    normal = body.along(body.normal, body.frames(start, end).components(np.array([[1.0], [0], [0]])))
    assert np.all(amplitude[normal[:, 0] < -0.1] == 0)
    by_rod = [np.sum(amplitude[body.segment == rod] ** 2) for rod in range(2)]
    assert by_rod[1] < 0.15 * by_rod[0]
    # Stepped aside, it is seen as well as the other one.
    start[1, 1], end[1, 1] = 0.4, 0.4
    aside = surface._amplitudes(body, start, end, radar, roughness=0.0)[:, 0]
    assert np.sum(aside[body.segment == 1] ** 2) == pytest.approx(np.sum(aside[body.segment == 0] ** 2), rel=0.1)


def test_cross_sections_fluctuate_as_swerling_with_the_stated_correlation_time():
    rng, step_s, correlation_s = np.random.default_rng(0), 0.02, 0.1
    squares = np.square(surface._fluctuation(rng, (2000, 300), step_s, correlation_s))
    assert squares.mean() == pytest.approx(1, abs=0.02)
    assert squares.std() == pytest.approx(1, abs=0.03)  # exponential
    assert np.mean(squares > 3) == pytest.approx(np.exp(-3), abs=0.005)
    for lag in (0, 5, 10):
        found = np.mean((squares[:, 0] - 1) * (squares[:, lag] - 1))
        assert found == pytest.approx(np.exp(-lag * step_s / correlation_s), abs=0.12)


def test_mirrors_stand_where_floor_and_walls_put_them():
    images = Surface(floor_db=-6, wall_db=-20, left_m=2, right_m=3).mirrors(np.array([5.0, 0.5, 1.2]))
    np.testing.assert_allclose([image for image, _ in images], [[5, 0.5, -1.2], [5, 3.5, 1.2], [5, -6.5, 1.2]])
    np.testing.assert_allclose([part for _, part in images], [10**-0.3, 0.1, 0.1])
    assert Surface().mirrors(RADAR) == []


def test_a_side_wall_adds_power_and_a_gate_shuts_it_out():
    """By way of a wall 3 m aside the path is longer by meters, far beyond five bins of 7.5 cm."""
    quiet = Surface(scatterers=60)
    hall = dataclasses.replace(quiet, wall_db=0.0, left_m=3.0)
    gated = dataclasses.replace(SENSOR, bandwidth_hz=2e9, gates=5)
    echoes = [body_echo(walk, SENSOR.time_s, RADAR, SENSOR, room) for room in (quiet, hall)]
    assert np.abs(echoes[1] - echoes[0]).max() > 0.1 * np.abs(echoes[0]).max()
    echoes = [body_echo(walk, SENSOR.time_s, RADAR, gated, room) for room in (quiet, hall)]
    np.testing.assert_allclose(echoes[1], echoes[0], atol=1e-6 * np.abs(echoes[0]).max())
    assert echoes[0].shape == (5, len(SENSOR.time_s))


def test_a_rod_is_in_the_gate_of_its_range():
    gated = dataclasses.replace(SENSOR, bandwidth_hz=1e9, gates=5)
    echo = body_echo(rods((0.0, 0.0)), SENSOR.time_s, RADAR, gated, Surface(scatterers=50))
    by_gate = np.mean(np.abs(echo) ** 2, axis=1)
    assert by_gate.argmax() == 2
    assert max(by_gate[0], by_gate[4]) < 0.1 * by_gate[2]


def test_breath_and_cloth_move_a_standing_body():
    """What stands still returns a constant; a chest that moves by A sin(2 pi f t) turns phases by 8 pi A / lambda."""
    echo = body_echo(rods((0, 0)), SENSOR.time_s, RADAR, SENSOR, Surface())[0]
    np.testing.assert_allclose(echo, echo[0], atol=1e-4 * abs(echo[0]))
    breathing = Surface(breathing_mm=0.5, breathing_hz=1.0)
    turned = np.unwrap(np.angle(body_echo(rods((0, 0)), SENSOR.time_s, RADAR, SENSOR, breathing)[0]))
    assert np.ptp(turned) == pytest.approx(8 * np.pi * 0.5e-3 / SENSOR.wavelength_m, rel=0.3)
    cloth = body_echo(rods((0, 0)), SENSOR.time_s, RADAR, SENSOR, Surface(clothing_mm=1))[0]
    assert np.abs(cloth - cloth.mean()).mean() > 0.1 * np.abs(cloth).mean()


def test_a_surface_fills_what_points_leave_empty():
    """Rows above -40 dB of a walker: the band between trunk and feet is filled, where points leave lines."""
    sensor = dataclasses.replace(SENSOR, carrier_hz=77e9, v_max_m_s=5.0, window_s=0.1, duration_s=3.0)
    shares = []
    for settings in (Surface(scatterers=0), Surface(roughness=0.6, scintillation_s=0.1, clothing_mm=1)):
        picture = spectrogram(body_echo(walk, sensor.time_s, RADAR, sensor, settings), sensor)
        shares.append(np.mean(picture > 1e-4 * picture.max()))
    assert shares[1] > 1.1 * shares[0]


def test_the_seed_alone_decides():
    settings = Surface(scintillation_s=0.1, clothing_mm=1, surface_seed=3)
    one, two, other = (
        body_echo(walk, SENSOR.time_s, RADAR, SENSOR, dataclasses.replace(settings, surface_seed=seed))
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0.05 * np.abs(one).max()


def test_pace_rises_and_falls_and_is_even_without_an_end():
    walker = Walker(lasts_s=8, ramp_s=1.5, slowest=0.4)
    times = np.linspace(-0.5, 8.5, 9001)
    pace = np.gradient(walker.paced(times), times)
    assert pace[times < 0] == pytest.approx(0.4, abs=1e-3)
    assert pace[(times > 1.6) & (times < 6.4)] == pytest.approx(1, abs=1e-3)
    assert pace[times > 8.01] == pytest.approx(0.4, abs=1e-3)
    assert np.all(np.diff(pace[times < 1.5]) > -1e-6)
    assert walker.paced(np.zeros(1)) == pytest.approx(0)
    np.testing.assert_array_equal(Walker().paced(times), times)
