"""Rotors, birds, pendulums, falls and sitting down against their closed-form figures."""

import numpy as np
import pytest
from scipy.special import ellipk

from mdaug.radar import body
from mdaug.radar.echo import ellipsoid_rcs, point_echo
from mdaug.radar.fall import GRAVITY_M_S2, Fall, SitDown, minimum_jerk, swing, toppling_angle
from mdaug.radar.flyers import Wing, rotor_echo, rotor_echo_in_band, rotor_lines
from mdaug.radar.sensor import SPEED_OF_LIGHT_M_S, Sensor
from mdaug.radar.stft import spectrogram

from .radar_helpers import ellipsoid_echo

WAVELENGTH_M = 0.0125


def rotor_edges(carrier_hz: float, blades: int, elevation_deg: float) -> tuple[float, float]:
    """Measure a rotor of 12 cm at 100 rev/s with a Hann window of 0.1 s.

    Returns by what part the frequency below which 99.5 % of the power lie, and the highest one at which the spectrum
    is not 34 dB under its maximum, exceed 2 Omega L cos(beta) / lambda.
    """
    length_m, rate_hz, window_s, elevation = 0.12, 100.0, 0.1, np.radians(elevation_deg)
    wavelength_m = SPEED_OF_LIGHT_M_S / carrier_hz
    tip_hz = 2 * (2 * np.pi * rate_hz) * length_m * np.cos(elevation) / wavelength_m
    count = round(window_s * 4 * tip_hz)
    turns = rate_hz * window_s * np.arange(count) / count
    echo = rotor_echo(2 * np.pi * turns, blades, length_m, elevation, wavelength_m)
    power = np.abs(np.fft.fft(echo * np.hanning(count), 8 * count)) ** 2
    frequency = np.abs(np.fft.fftfreq(8 * count, window_s / count))
    order = np.argsort(frequency)
    inside = np.cumsum(power[order]) / power.sum()
    edge_power_hz = frequency[order][(inside >= 0.995).argmax()]
    edge_level_hz = frequency[power > power.max() * 10**-3.4].max()
    return edge_power_hz / tip_hz - 1, edge_level_hz / tip_hz - 1


@pytest.mark.parametrize("carrier_hz", [5.8e9, 10e9, 24e9])
def test_rotor_edge(carrier_hz):
    """The small quadcopter's rotor of two blades, seen in its plane, to the whole percents of the published range."""
    power, level = rotor_edges(carrier_hz, blades=2, elevation_deg=0)
    assert -0.05 <= power <= 0.02
    assert 0.06 <= round(level, 2) <= 0.10


@pytest.mark.parametrize(
    ("carrier_hz", "blades", "elevation_deg"),
    [(24e9, 2, 30), (24e9, 3, 20), (24e9, 4, 10), (77e9, 2, 0), (77e9, 3, 30), (77e9, 4, 20)],
)
def test_rotor_edge_of_other_rotors(carrier_hz, blades, elevation_deg):
    """Lines every N f_rot make the level's edge uneven, and it gets steeper with L / lambda: never beyond +10 %."""
    power, level = rotor_edges(carrier_hz, blades, elevation_deg)
    assert -0.05 <= power <= 0.02
    assert 0 < level <= 0.10


@pytest.mark.parametrize("blades", [1, 2, 3, 4, 5])
def test_rotor_flashes_and_lines(blades):
    """abs(s) repeats at N f_rot for even N and 2 N f_rot for odd N; the lines are N f_rot apart for every N."""
    count, length_m = 7200, 0.12
    angle = 2 * np.pi * np.arange(count) / count
    echo = rotor_echo(angle, blades, length_m, 0.2, WAVELENGTH_M)
    flashes = blades if blades % 2 == 0 else 2 * blades
    envelope = np.abs(echo)
    np.testing.assert_allclose(np.roll(envelope, count // flashes), envelope, atol=1e-9)
    assert np.abs(np.roll(envelope, count // (2 * flashes)) - envelope).max() > 0.1
    power = np.abs(np.fft.fft(echo)) ** 2
    lines = np.flatnonzero(power > 1e-12 * power.max())
    assert np.all(np.minimum(lines, count - lines) % blades == 0)
    assert np.gcd.reduce(lines) == blades


def test_rotor_lines_rebuild_the_echo():
    """All lines together are the echo; those of a band are what an ideal low-pass leaves of it."""
    blades, count = 3, 4096
    turns = np.arange(count) / count
    echo = rotor_echo(2 * np.pi * turns, blades, 0.1, 0.3, WAVELENGTH_M)
    lines = rotor_lines(blades, 0.1, 0.3, WAVELENGTH_M)
    highest = int(lines[0].max())
    np.testing.assert_allclose(rotor_echo_in_band(turns, lines, blades, range(-highest, highest + 1)), echo, atol=1e-6)
    spectrum = np.fft.fft(echo)
    harmonic = np.fft.fftfreq(count, 1 / count)
    spectrum[(harmonic < -4 * blades) | (harmonic > 6 * blades)] = 0
    np.testing.assert_allclose(rotor_echo_in_band(turns, lines, blades, range(-4, 7)), np.fft.ifft(spectrum), atol=1e-9)


def test_blade_across_the_line_of_sight_flashes_at_full_strength():
    assert rotor_echo(np.array(np.pi / 2), 2, 0.12, 0.0, WAVELENGTH_M) == pytest.approx(1)
    assert abs(rotor_echo(np.array(0.3), 2, 0.12, 0.0, WAVELENGTH_M)) < 0.1


def test_bird_elbow_and_tip_speeds():
    wing = Wing(twist_deg=0, flap_hz=4.5, inner_m=0.22, outer_m=0.3)
    time_s = np.arange(0, 0.5, 1e-5)
    elbow, tip = wing.joints(wing.flap_hz * time_s)
    speed = [np.linalg.norm(np.gradient(joint, time_s, axis=-1), axis=1)[:, 5:-5].max() for joint in (elbow, tip)]
    inner, outer = np.radians([wing.inner_amplitude_deg, wing.outer_amplitude_deg])
    beat = 2 * np.pi * wing.flap_hz
    assert speed[0] == pytest.approx(beat * inner * wing.inner_m, rel=1e-4)
    assert speed[1] <= beat * (wing.inner_m * inner + wing.outer_m * abs(inner - outer)) * (1 + 1e-4)


def test_bird_segments_keep_their_lengths():
    wing = Wing(twist_deg=25)
    elbow, tip = wing.joints(np.linspace(0, 1, 50))
    np.testing.assert_allclose(np.linalg.norm(elbow, axis=1), wing.inner_m)
    np.testing.assert_allclose(np.linalg.norm(tip - elbow, axis=1), wing.outer_m)


@pytest.mark.parametrize("amplitude_deg", [5, 60, 150])
def test_pendulum_speed_and_period(amplitude_deg):
    length_m, amplitude = 0.7, np.radians(amplitude_deg)
    period = 4 * np.sqrt(length_m / GRAVITY_M_S2) * ellipk(np.sin(amplitude / 2) ** 2)  # K: complete elliptic integral
    time_s = np.linspace(0, 2 * period, 40_001)
    angle = swing(time_s, length_m, amplitude)
    peak = length_m * np.abs(np.gradient(angle, time_s)).max()
    assert peak == pytest.approx(np.sqrt(2 * GRAVITY_M_S2 * length_m * (1 - np.cos(amplitude))), rel=1e-4)
    assert angle[20_000] == pytest.approx(amplitude, rel=1e-6)
    falling = np.flatnonzero(np.diff(np.sign(angle)) < 0)
    assert np.diff(time_s[falling])[0] == pytest.approx(period, rel=1e-4)


def test_damped_pendulum_tends_to_the_exact_one():
    time_s = np.linspace(0, 4, 500)
    np.testing.assert_allclose(swing(time_s, 0.5, 1.2, 1e-9), swing(time_s, 0.5, 1.2), atol=1e-5)
    assert np.abs(swing(time_s, 0.5, 1.2, 0.8)[-150:]).max() < 0.5


def test_minimum_jerk_peak_speed():
    part = np.linspace(0, 1, 100_001)
    assert np.gradient(minimum_jerk(part), part).max() == pytest.approx(1.875, rel=1e-4)


def test_falling_rod():
    """Time, impact speed and highest horizontal speed of the top of a rod of 1.75 m that leaves 5 degrees."""
    length_m, start = 1.75, np.radians(5)
    time_s = np.arange(-0.1, 1.6, 1e-4)
    angle = toppling_angle(time_s, length_m, start)
    assert time_s[(angle >= np.pi / 2).argmax()] == pytest.approx(1.25, abs=0.01)
    falls = angle < np.pi / 2
    top = np.stack([length_m * np.sin(angle), length_m * np.cos(angle)])[:, falls]
    velocity = np.gradient(top, time_s[falls], axis=1)
    assert np.linalg.norm(velocity, axis=0).max() == pytest.approx(
        np.sqrt(3 * GRAVITY_M_S2 * length_m * np.cos(start)), rel=1e-3
    )
    assert velocity[0].max() == pytest.approx(2.75, abs=0.01)
    assert np.degrees(angle[falls][velocity[0].argmax()]) == pytest.approx(48, abs=0.5)


def test_stiff_fall_is_the_rod_and_ends_on_the_floor():
    time_s = np.arange(0, 3, 0.002)
    _, end, _ = Fall(height_m=1.7, knee_deg=0, arm_deg=0).ellipsoids(time_s)
    crown = end[1]
    np.testing.assert_allclose(np.linalg.norm(crown, axis=0), body.STANDING * 1.7, rtol=1e-9)
    bent = Fall(height_m=1.7, knee_deg=60, arm_deg=100).ellipsoids(time_s)
    assert crown[2, -1] == pytest.approx(0, abs=1e-9)
    assert min(bent[0][:4, 2].min(), bent[1][:4, 2].min()) > -1e-6


def test_sitting_keeps_limbs_and_reaches_the_seat():
    motion, time_s = SitDown(), np.arange(0, 3, 0.002)
    start, end, _ = motion.ellipsoids(time_s)
    length = np.linalg.norm(end - start, axis=1)
    np.testing.assert_allclose(length, length[:, :1] + 0 * time_s, rtol=1e-6)
    np.testing.assert_allclose(start[0, :, -1] - start[0, :, 0], [-motion.back_m, 0, -motion.drop_m], atol=1e-12)


SENSOR = Sensor(rows=128, columns=96, settling_s=0)  # no window starts half-way between two pulses


def picture(parts, radar=(5.0, 1.0, 1.0)):
    return spectrogram(ellipsoid_echo(*parts, np.array(radar), SENSOR.wavelength_m), SENSOR)


def test_standing_up_is_sitting_down_backwards():
    """The movement reversed in time: the picture is turned by 180 degrees."""
    middle = SENSOR.time_s[-1] / 2
    down = SitDown(start_s=middle - 0.75, sitting_s=1.5)
    up = SitDown(start_s=middle - 0.75, sitting_s=1.5, backwards=True)
    sitting, standing = picture(down.ellipsoids(SENSOR.time_s)), picture(up.ellipsoids(SENSOR.time_s))
    np.testing.assert_allclose(standing, sitting[::-1, ::-1], rtol=1e-6, atol=1e-7 * sitting.max())


def test_radar_on_the_other_side_sees_every_velocity_reversed():
    parts = Fall().ellipsoids(SENSOR.time_s)
    ahead, behind = picture(parts, (1e7, 0, 1.0)), picture(parts, (-1e7, 0, 1.0))
    np.testing.assert_allclose(behind, ahead[::-1], rtol=1e-3, atol=1e-5 * ahead.max())


def test_ellipsoid_from_the_side_and_from_the_end():
    cos_angle, half_length, radius = np.array([0.0, 1.0]), np.array(0.2), np.array(0.06)
    expected = [np.pi * 0.2**2, np.pi * 0.06**4 / 0.2**2]
    np.testing.assert_allclose(ellipsoid_rcs(cos_angle, half_length, radius), expected)


def test_echo_power_falls_with_the_fourth_power_of_range_and_phase_follows_the_path():
    near, far = (np.array([[[x], [0.0], [0.0]]]) for x in (10.0, 20.0))
    origin = np.zeros(3)
    echoes = [point_echo(at, np.ones((1, 1)), origin, WAVELENGTH_M)[0] for at in (near, far)]
    assert abs(echoes[0]) ** 2 / abs(echoes[1]) ** 2 == pytest.approx(16)
    step = near - np.array([[[WAVELENGTH_M / 8], [0], [0]]])  # closer by an eighth: a quarter turn forward
    turned = point_echo(step, np.ones((1, 1)), origin, WAVELENGTH_M)[0] / echoes[0]
    assert np.angle(turned) == pytest.approx(np.pi / 2, abs=1e-6)
