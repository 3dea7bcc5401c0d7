"""The Boulic-Thalmann walker: curves that join, feet that stand, and a signature with the published figures."""

import functools
import itertools

import numpy as np
import pytest

from mdaug.radar import body, gait
from mdaug.radar.echo import ellipsoid_echo
from mdaug.radar.gait import Walker, control_points, joints, periodic_curve
from mdaug.radar.sensor import Sensor
from mdaug.radar.spectrogram import spectrogram

HEIGHT_M = 1.8
HIP_HEIGHT_M = body.HIP_HEIGHT * HEIGHT_M


def walker_at(relative_speed: float, **traits) -> Walker:
    return Walker(height_m=HEIGHT_M, speed_m_s=relative_speed * HIP_HEIGHT_M, **traits)


def speed_over_v(position: np.ndarray, time_s: np.ndarray, walker: Walker) -> np.ndarray:
    return np.gradient(position[0], time_s) / walker.speed_m_s


def envelope(power: np.ndarray, velocities: np.ndarray, part: float) -> np.ndarray:
    """Velocity below which `part` of the power of each column lies."""
    rising = np.cumsum(power[::-1], axis=0) / power.sum(axis=0)
    return velocities[::-1][(rising >= part).argmax(axis=0)]


COLUMN_S = 0.01
SPEEDS_M_S = (0.9, 1.1, 1.5, 1.8)
CASES = list(itertools.product((5.8e9, 24e9, 77e9), SPEEDS_M_S))


@functools.cache
def walk(carrier_hz: float, speed_m_s: float):
    """Noise-free spectrograms of four walks towards a radar at 1 m height, Hann window of 0.1 s.

    Four, because echoes of trunk and thighs interfere: what one walk shows depends on centimetres.
    """
    sensor = Sensor(carrier_hz=carrier_hz, v_max_m_s=9, duration_s=4, window_s=0.1, settling_s=0, rows=720, columns=391)
    spectra = []
    for distance_m, height_m in itertools.product((10, 13), (1.77, 1.83)):
        walker = Walker(height_m=height_m, speed_m_s=speed_m_s)
        parts = gait.ellipsoids(walker, sensor.time_s)
        echo = ellipsoid_echo(*parts, np.array([distance_m, 0, 1]), sensor.wavelength_m)
        spectra.append((walker, spectrogram(echo, sensor)))
    return sensor, speed_m_s, spectra


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0] / 1e9:g}GHz-{case[1]:g}m/s")
def walks(request):
    return walk(*request.param)


def test_mean_power_centroid_is_the_walking_speed(walks):
    sensor, speed_m_s, spectra = walks
    centroid = np.mean([sensor.velocities_m_s @ power / power.sum(axis=0) for _, power in spectra])
    assert -0.06 <= centroid / speed_m_s - 1 <= 0


@pytest.mark.parametrize("carrier_hz", [5.8e9, 24e9, 77e9])
def test_torso_ridge_is_the_walking_speed(carrier_hz):
    """Over all speeds; for one of them trunk and thighs may lie within one Doppler cell and shift the maximum."""
    ratios = []
    for speed_m_s in SPEEDS_M_S:
        sensor, _, spectra = walk(carrier_hz, speed_m_s)
        ratios += [np.median(sensor.velocities_m_s[power.argmax(axis=0)]) / speed_m_s for _, power in spectra]
    assert 0.91 <= np.mean(ratios) <= 0.99
    assert 0.84 <= min(ratios) <= max(ratios) <= 1.1


def test_envelope_repeats_at_every_step(walks):
    sensor, _, spectra = walks
    errors = []
    for walker, power in spectra:
        upper = envelope(power, sensor.velocities_m_s, 0.97)
        upper = upper - upper.mean()
        overlap = np.arange(len(upper), 0, -1)
        correlation = np.correlate(upper, upper, "full")[len(upper) - 1 :] / overlap
        first = int(0.3 / COLUMN_S)
        peak = first + correlation[first : int(0.9 / COLUMN_S)].argmax()
        left, middle, right = correlation[peak - 1 : peak + 2]
        step_s = COLUMN_S * (peak + 0.5 * (left - right) / (left - 2 * middle + right))
        errors.append(step_s / (walker.cycle_s / 2) - 1)
    assert np.mean(errors) == pytest.approx(0, abs=0.014)


def test_envelopes_reach_the_published_multiples_of_the_speed(walks):
    sensor, speed_m_s, spectra = walks
    reach = {
        part: np.mean([envelope(power, sensor.velocities_m_s, part).max() for _, power in spectra]) / speed_m_s
        for part in (0.97, 0.995)
    }
    assert 2.1 <= reach[0.97] <= 3.4
    # The turn of the pelvis adds to the foot what the published runs took away, most for slow walkers.
    assert 3.1 <= reach[0.995] <= (4.3 if speed_m_s > 1 else 4.7)


@pytest.mark.parametrize(("relative_speed", "expected"), [(1.0, 2.81), (1.6, 2.42), (2.0, 2.29)])
def test_shank_peak(relative_speed, expected):
    """The published figures turn the pelvis the other way (scale -1); the right way adds up to 8 %."""
    time_s = np.arange(0, 8, 1 / 500)

    def peak(pelvis_scale: float) -> float:
        walker = walker_at(relative_speed, pelvis_scale=pelvis_scale)
        at = joints(walker, time_s)
        return speed_over_v((at["knee"][0] + at["ankle"][0]) / 2, time_s, walker).max()

    assert peak(-1) == pytest.approx(expected, rel=0.01)
    assert 1.03 * expected < peak(1) < 1.08 * expected


def test_hands_swing_between_the_published_multiples_of_the_speed():
    time_s, walker = np.arange(0, 8, 1 / 500), walker_at(1.6, pelvis_scale=-1)
    hand = speed_over_v(joints(walker, time_s)["hand"][0], time_s, walker)
    assert hand.max() == pytest.approx(2.1, abs=0.06)
    assert hand.min() == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("relative_speed", [0.8, 1.0, 1.3, 1.6])
def test_standing_foot_hardly_slips_and_stays_on_the_ground(relative_speed):
    """In m/s, as published (0.14 to 0.25); from rv 1.3 on it is also less than with the pelvis turned the other way."""
    time_s = np.arange(0, 8, 1 / 500)

    def slip(pelvis_scale: float) -> tuple[float, float]:
        walker = walker_at(relative_speed, pelvis_scale=pelvis_scale)
        phase, ankle = walker.cycles(time_s) % 1, joints(walker, time_s)["ankle"][0]
        stands = (phase > 0.1) & (phase < walker.support_part - 0.15)
        return np.abs(np.gradient(ankle[0], time_s)[stands]).mean(), ankle[2].min()

    slipping, lowest_m = slip(1)
    assert slipping < 0.25
    assert lowest_m > -0.005
    if relative_speed >= 1.3:
        assert slipping < slip(-1)[0]


@pytest.mark.parametrize("border", [0.5, 1.3])
def test_gait_classes_join(border):
    """Curves and translations of neighbouring classes agree at the border."""
    phase = np.linspace(0, 1, 400, endpoint=False)
    below, above = (control_points(border + side, 0.62) for side in (-1e-9, 1e-9))
    for name in below:
        # The hip of class c has a second point that meets the first one at the border; until then it bends the curve.
        tolerance_deg = 0.7 if (name, border) == ("hip", 1.3) else 1e-3
        np.testing.assert_allclose(
            periodic_curve(below[name], phase), periodic_curve(above[name], phase), atol=tolerance_deg, err_msg=name
        )
    time_s = np.linspace(0, 3, 300)
    slower, faster = (gait.spine_origin(walker_at(border + side), time_s) for side in (-1e-7, 1e-7))
    np.testing.assert_allclose(slower, faster, atol=1e-5)


def test_curves_are_periodic_and_pass_their_control_points():
    for relative_speed in (0.3, 1.0, 2.0):
        for name, points in control_points(relative_speed, 0.62).items():
            phases, values = np.array(points).T
            np.testing.assert_allclose(periodic_curve(points, phases), values, atol=1e-9, err_msg=name)
            np.testing.assert_allclose(periodic_curve(points, phases + 3), values, atol=1e-9, err_msg=name)


def test_limbs_keep_their_lengths():
    time_s = np.arange(0, 3, 0.01)
    start, end, radius = gait.ellipsoids(walker_at(1.4, asymmetry=0.05, lean_deg=4, wander=0.01), time_s)
    length = np.linalg.norm(end - start, axis=1)
    assert len(radius) == len(length) == 16
    np.testing.assert_allclose(length, length[:, :1] * np.ones_like(time_s), rtol=1e-9)
    expected = [body.HEAD, body.TORSO] + 2 * [
        body.HALF_SHOULDER, body.UPPER_ARM, body.FOREARM, body.HALF_HIP, body.THIGH, body.SHANK, body.FOOT,
    ]  # fmt: skip
    np.testing.assert_allclose(sorted(length[:, 0] / HEIGHT_M), sorted(expected), rtol=1e-9)


def test_left_side_is_the_right_side_half_a_cycle_later():
    walker = walker_at(1.5)
    time_s = np.arange(0, 2, 0.01)
    now, later = joints(walker, time_s), joints(walker, time_s + walker.cycle_s / 2)
    travelled = np.array([walker.speed_m_s * walker.cycle_s / 2, 0, 0])[:, None]
    mirror = np.array([1, -1, 1])[:, None]
    for name in ("ankle", "toe", "hand"):
        np.testing.assert_allclose(later[name][1] - travelled, mirror * now[name][0], atol=1e-9)


def test_impossible_speed_is_refused():
    with pytest.raises(ValueError, match="speed_m_s is 3"):
        Walker(height_m=1.8, speed_m_s=3)
