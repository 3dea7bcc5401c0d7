"""The receiver, the velocity axis, decibels and colours."""

import numpy as np
import pytest

from mdaug.radar.echo import receive
from mdaug.radar.sensor import Sensor
from mdaug.radar.stft import remove_clutter, spectrogram, to_levels
from shards.colormap import jet


def tone(sensor: Sensor, velocity_m_s: float) -> np.ndarray:
    return np.exp(4j * np.pi / sensor.wavelength_m * velocity_m_s * sensor.time_s)


@pytest.mark.parametrize("velocity_m_s", [-5.9, -1.3, 0.02, 4.0])
@pytest.mark.parametrize("rows", [64, 256])
def test_tone_lands_on_the_row_of_its_velocity(rows, velocity_m_s):
    """Approaching targets, of positive velocity, are in the upper half."""
    sensor = Sensor(rows=rows, columns=32, settling_s=0)
    power = spectrogram(tone(sensor, velocity_m_s), sensor)
    assert power.shape == (rows, 32)
    found = sensor.velocities_m_s[power.argmax(axis=0)]
    np.testing.assert_allclose(found, velocity_m_s, atol=sensor.v_max_m_s / rows + 1e-6)


def test_velocity_beyond_the_axis_does_not_fold_into_the_picture():
    sensor = Sensor(settling_s=0)
    inside, outside = (spectrogram(tone(sensor, velocity), sensor).max() for velocity in (3.0, 7.0))
    assert outside < 1e-5 * inside


def test_small_picture_is_the_average_of_the_large_one():
    sensor = Sensor(rows=256, columns=50, settling_s=0)
    small = Sensor(rows=64, columns=50, settling_s=0)
    signal = np.random.default_rng(0).standard_normal((2, len(sensor.time_s)))
    fine, coarse = (spectrogram(signal[0] + 1j * signal[1], each) for each in (sensor, small))
    np.testing.assert_allclose(coarse.sum() / 64, fine.sum() / 256, rtol=0.02)
    assert np.corrcoef(coarse.ravel(), fine.reshape(64, 4, 50).mean(axis=1).ravel())[0, 1] > 0.97


def test_high_pass_removes_clutter_and_keeps_motion():
    sensor = Sensor()
    moving = tone(sensor, 1.0)
    with_clutter = remove_clutter(moving + 1000, sensor)
    assert len(with_clutter) == len(moving) - sensor.settling_samples
    power = np.mean(np.abs(with_clutter) ** 2)
    assert power == pytest.approx(1, abs=0.02)
    at_cutoff = remove_clutter(tone(sensor, sensor.mti_cutoff_m_s), sensor)
    assert np.mean(np.abs(at_cutoff[len(at_cutoff) // 2 :]) ** 2) == pytest.approx(0.5, abs=0.02)


def test_receiver_adds_noise_and_image_at_their_levels():
    sensor = Sensor(settling_s=0)
    rng = np.random.default_rng(3)
    noisy = receive(
        0.01 * tone(sensor, 3.0), sensor.prf_hz, rng, snr_db=10, clutter_to_signal_db=-300, iq_image_db=-300
    )
    assert np.mean(np.abs(noisy - tone(sensor, 3.0)) ** 2) == pytest.approx(0.1, rel=0.05)
    mirrored = receive(tone(sensor, 3.0), sensor.prf_hz, rng, snr_db=300, clutter_to_signal_db=-300, iq_image_db=-30)
    power = spectrogram(mirrored, sensor).mean(axis=1)
    at, opposite = (np.abs(sensor.velocities_m_s - velocity).argmin() for velocity in (3.0, -3.0))
    assert 10 * np.log10(power[opposite] / power[at]) == pytest.approx(-30, abs=0.2)


def test_levels_span_the_clip():
    power = 10 ** (np.array([[0.0, -20.0, -40.0, -80.0]]) / 10)
    np.testing.assert_array_equal(to_levels(power, 40), [[255, 128, 0, 0]])


@pytest.mark.parametrize(("entries", "floor"), [(256, (0, 0, 131)), (64, (0, 0, 143))])
def test_jet_is_that_of_matlab(entries, floor):
    table = jet(entries)
    assert table.shape == (entries, 3)
    assert tuple(table[0]) == floor
    assert tuple(table[-1]) == (128, 0, 0)
    assert tuple(table[entries // 2 - 1]) == (128, 255, 128)
    assert len(np.unique(table, axis=0)) == entries
