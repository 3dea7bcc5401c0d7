"""The Boulic-Thalmann walker: curves that join, feet that stand, and a signature with the published figures."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from mdaug.measures.envelope import envelopes
from mdaug.radar import body, gait
from mdaug.radar.gait import Walker, control_points, joints, periodic_curve
from mdaug.radar.sensor import Sensor
from mdaug.radar.stft import spectrogram

from .radar_helpers import ellipsoid_echo

HEIGHT_M = 1.8
HIP_HEIGHT_M = body.HIP_HEIGHT * HEIGHT_M


def walker_at(relative_speed: float, **traits) -> Walker:
    return Walker(height_m=HEIGHT_M, speed_m_s=relative_speed * HIP_HEIGHT_M, **traits)


def speed_over_v(position: np.ndarray, time_s: np.ndarray, walker: Walker) -> np.ndarray:
    return np.gradient(position[0], time_s) / walker.speed_m_s


SPEEDS_M_S = (0.9, 1.1, 1.5, 1.8)
CASES = list(itertools.product((5.8e9, 24e9, 77e9), SPEEDS_M_S))
ENDS_M = (2, 4, 8, 12)
SENSOR = Sensor(v_max_m_s=9, duration_s=8, window_s=0.1, settling_s=0, rows=1200, columns=396)
COLUMN_S = 0.02


@functools.cache
def walks(carrier_hz: float, speed_m_s: float, pelvis_scale: float = 1):
    """Measure noise-free walks of 8 s towards a radar at 1 m height, Hann window of 0.1 s; in parts of the speed.

    Returns the walker and, each (4, columns), mean velocity by power, ridge, and envelopes at 97 and 99.5 %. Four
    walks, which end at other distances, because echoes of trunk and thighs interfere: what one walk shows depends on
    centimetres.
    """
    sensor = dataclasses.replace(SENSOR, carrier_hz=carrier_hz)
    walker = Walker(height_m=HEIGHT_M, speed_m_s=speed_m_s, pelvis_scale=pelvis_scale)
    parts = gait.ellipsoids(walker, sensor.time_s)
    measured = []
    for end_m in ENDS_M:
        radar = np.array([end_m + walker.speed_m_s * sensor.duration_s, 0, 1])
        power = spectrogram(ellipsoid_echo(*parts, radar, sensor.wavelength_m), sensor)
        centroid = sensor.velocities_m_s @ power / power.sum(axis=0)
        ridge, upper, _ = envelopes(power)
        _, outermost, _ = envelopes(power, tail=0.005)
        measured.append([centroid, *(sensor.v_max_m_s * (1 - 2 * np.stack([ridge, upper, outermost])))])
    return walker, *np.array(measured).swapaxes(0, 1) / speed_m_s


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0] / 1e9:g}GHz-{case[1]:g}m/s")
def case(request):
    return request.param


def test_mean_power_centroid_is_the_walking_speed(case):
    _, centroid, *_ = walks(*case)
    assert -0.06 <= centroid.mean() - 1 <= 0


def test_torso_ridge_is_the_walking_speed(case):
    """To the two decimals of the published range, and no other than it for any carrier or speed."""
    _, _, ridge, *_ = walks(*case)
    assert 0.91 <= round(np.median(ridge, axis=1).mean(), 2) <= 0.99


def test_envelope_repeats_at_every_step(case):
    walker, _, _, envelope, _ = walks(*case)
    for upper in envelope - envelope.mean(axis=1, keepdims=True):
        overlap = np.arange(len(upper), 0, -1)
        correlation = np.correlate(upper, upper, "full")[len(upper) - 1 :] / overlap
        first = round(0.3 / COLUMN_S)
        peak = first + correlation[first : round(0.9 / COLUMN_S)].argmax()
        left, middle, right = correlation[peak - 1 : peak + 2]
        step_s = COLUMN_S * (peak + 0.5 * (left - right) / (left - 2 * middle + right))
        assert step_s == pytest.approx(walker.cycle_s / 2, rel=0.014)


def test_envelope_reaches_the_published_multiples_of_the_speed(case):
    *_, envelope, _ = walks(*case)
    assert 2.1 <= envelope.max(axis=1).mean() <= 3.4


@pytest.mark.parametrize("pelvis_scale", [1, -1])
def test_outermost_envelope_reaches_the_published_multiples_of_the_speed(case, pelvis_scale):
    """To their one decimal. They were found with the pelvis turned the other way (scale -1); see docs/decisions.md."""
    *_, outermost = walks(*case, pelvis_scale)
    fastest = 4.6 if (pelvis_scale, case[1]) == (1, 0.9) else 4.3
    assert 3.1 <= round(outermost.max(axis=1).mean(), 1) <= fastest


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


@pytest.mark.parametrize("relative_speed", [1.0, 1.6, 2.0])
def test_feet_and_toes_reach_the_published_multiples_of_the_speed(relative_speed):
    """Feet 3.5 to 4.5 and toes 3.9 to 5.1 over these speeds; the slowest foot here is 1.2 % above that."""
    time_s, walker = np.arange(0, 8, 1 / 500), walker_at(relative_speed, pelvis_scale=-1)
    at = joints(walker, time_s)
    foot, toe = (speed_over_v(part[0], time_s, walker).max() for part in ((at["ankle"] + at["toe"]) / 2, at["toe"]))
    assert 3.5 <= foot <= 4.5 * 1.015
    assert 3.9 <= round(toe, 1) <= 5.1


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
