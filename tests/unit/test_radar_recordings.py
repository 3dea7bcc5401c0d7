"""Raw recordings: a target stands at its velocity and its range, whatever file the samples come from."""

import itertools

import numpy as np
import pytest
from scipy import signal
from scipy.io import savemat

from mdaug.radar import stft
from mdaug.radar.recording import Radar, Recording, Unreadable
from mdaug.radar.recordings import read
from mdaug.radar.sensor import SPEED_OF_LIGHT_M_S
from mdaug.radar.stft import Chain, Transform, brightness

from .radar_helpers import (
    BANDWIDTH,
    CARRIER,
    PER_SWEEP,
    PRF,
    WAVELENGTH,
    sweeps,
    velocity_over_time,
    write_text,
)


def everything(recording: Recording) -> np.ndarray:
    """All samples (ranges, pulses) of a recording without frames."""
    return recording.block(0, recording.units)[0, 0]


def strongest_m_s(amplitudes: np.ndarray, v_max: float) -> float:
    """Velocity of the strongest row, in m/s."""
    axis = np.linspace(v_max, -v_max, len(amplitudes))
    return float(axis[amplitudes.mean(axis=1).argmax()])


@pytest.mark.parametrize("approach", [2.0, -3.5])
def test_a_target_stands_at_its_velocity_and_clutter_is_gone(tmp_path, approach):
    """Approaching is up; the wall beside it is 60 dB stronger; a faster target beyond range_m is not seen."""
    step = SPEED_OF_LIGHT_M_S / (2 * BANDWIDTH)
    scene = sweeps((12 * step, approach, 1), (9 * step, 0, 1000), (45 * step, 5, 3))
    recording = read(write_text(tmp_path / "a.dat", scene), Radar())
    assert everything(recording).shape == (PER_SWEEP // 2, scene.shape[1])
    assert recording.range_step_m == pytest.approx(step)
    amplitudes = velocity_over_time(recording, Chain(v_max_m_s=6, range_m=(1.5, 10), window_s=0.2, settle_s=0.5))
    resolution = WAVELENGTH / (2 * 0.2)
    assert strongest_m_s(amplitudes, 6) == pytest.approx(approach, abs=resolution / 2)
    levels = brightness(amplitudes, 40, amplitudes.max())
    axis = np.linspace(6, -6, len(levels))
    assert levels[np.abs(axis - approach) > 2 * resolution].max() < 0.1  # neither wall nor the target beyond


def test_ranges_are_metres_whatever_the_bandwidth(tmp_path):
    """Some files of the Glasgow set were measured with 100 MHz: the same scene, the same picture."""
    for bandwidth in (400e6, 100e6):
        step = SPEED_OF_LIGHT_M_S / (2 * bandwidth)
        near, far = round(4.5 / step) * step, round(15 / step) * step
        scene = sweeps((near, 2, 1), (far, -4, 10), bandwidth=bandwidth)
        recording = read(write_text(tmp_path / "a.dat", scene, bandwidth), Radar())
        for wanted, range_m in ((2, (1.5, 10)), (-4, (12, 18))):
            amplitudes = velocity_over_time(recording, Chain(v_max_m_s=6, range_m=range_m))
            assert strongest_m_s(amplitudes, 6) == pytest.approx(wanted, abs=0.15)


def test_the_files_of_one_recording_read_alike(tmp_path):
    """Text with a torn last sweep; sweeps, ranges and a single range as arrays."""
    scene = sweeps((12 * 0.375, 2, 1), seconds=1).round(4).astype(np.complex64)
    text = read(write_text(tmp_path / "a.dat", scene, extra=77), Radar())
    np.save(tmp_path / "sweeps.npy", scene)
    savemat(tmp_path / "sweeps.mat", {"Data": scene, "fs": 1000.0, "name": "walk"})
    assert text.notes == ("77 samples after the last whole sweep are left out",)
    given = Radar(CARRIER, PRF, BANDWIDTH)
    for name in ("sweeps.npy", "sweeps.mat"):
        other = read(tmp_path / name, given)
        np.testing.assert_allclose(everything(other), everything(text), atol=1e-3)
        assert (other.prf_hz, other.carrier_hz, other.range_step_m) == (text.prf_hz, text.carrier_hz, text.range_step_m)
    np.save(tmp_path / "ranges.npy", everything(text))
    ranges = read(tmp_path / "ranges.npy", Radar(CARRIER, PRF))
    np.testing.assert_array_equal(everything(ranges), everything(text))
    assert ranges.range_step_m is None

    one = everything(text)[12]
    np.save(tmp_path / "one.npy", one)
    savemat(tmp_path / "column.mat", {"Sig": np.stack([one.real, one.imag], axis=1)})
    for name in ("one.npy", "column.mat"):
        np.testing.assert_allclose(everything(read(tmp_path / name, Radar(CARRIER, PRF))), one[None], atol=1e-6)


def test_the_transform_is_that_of_scipy():
    """The same chain from scipy's parts, on noise: high-pass, Hamming, zero padding, magnitudes summed over ranges."""
    rng = np.random.default_rng(0)
    samples = (rng.normal(size=(3, 4000)) + 1j * rng.normal(size=(3, 4000))).astype(np.complex64)
    found = velocity_over_time(
        Recording(samples, ("ranges", "pulses"), PRF, CARRIER), Chain(6.0, None, 0.2, 0.01, 0.1, 0.5)
    )
    sections = signal.butter(4, 2 * 0.1 / WAVELENGTH, "highpass", fs=PRF, output="sos")
    state = signal.sosfilt_zi(sections)
    total = 0
    for row in samples:
        moving = signal.sosfilt(sections, row, zi=state * row[0])[0][500:]
        options = {"window": "hamming", "nperseg": 200, "noverlap": 190, "nfft": 800, "mode": "magnitude"}
        frequencies, _, spectrum = signal.spectrogram(moving, PRF, **options, detrend=False, return_onesided=False)
        total = total + spectrum
    velocities = frequencies * WAVELENGTH / 2
    order = np.argsort(-velocities)
    order = order[np.abs(velocities[order]) <= 6]
    assert found.shape == (len(order), (3500 - 200) // 10 + 1)
    np.testing.assert_allclose(found / found.max(), total[order] / total[order].max(), atol=1e-4)


def test_brightness_is_in_decibels_below_the_maximum():
    amplitudes = np.array([[1.0, 0.1], [0.01, 0.0]], np.float32)
    np.testing.assert_allclose(brightness(amplitudes, 40, 1.0), [[1, 0.5], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(brightness(amplitudes, 40, 0.1), [[1, 1], [0.5, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "radar", "reason"),
    [
        ("a.dat", b"5.8e9\n1\n128\n", Radar(), "not a text file of four numbers"),
        ("a.dat", b"5.8e9\n1\n2\n4e8\n1+1i\nhello\n", Radar(), "not a text file of four numbers"),
        ("a.dat", b"5.8e9\n1\n2\n0\n1+1i\n1+1i\n", Radar(), "continuous wave"),
        ("a.dat", b"5.8e9\n0\n2\n4e8\n1+1i\n1+1i\n", Radar(), "must be above 0"),
        ("a.dat", b"5.8e9\n1\n2\n4e8\n", Radar(), "no samples"),
        ("a.dat", b"5.8e9\n1\n2\n4e8\nNaN+NaNi\n1+1i\n", Radar(), "not finite"),
        ("a.npy", b"no array", Radar(1e9, 1e3), "is not an .npy array"),
        ("a.mat", b"no matrix", Radar(1e9, 1e3), "is not a MATLAB file"),
        ("a.npy", np.ones((4, 3)), Radar(1e9, 1e3), r"an array \(4, 3\) of float64; complex numbers"),
        ("a.npy", np.ones((2, 3, 4), complex), Radar(1e9, 1e3), r"an array \(2, 3, 4\); \(pulses,\)"),
        ("a.npy", np.ones(9, complex), Radar(prf_hz=1e3), "give --carrier_hz"),
        ("a.npy", np.ones(9, complex), Radar(1e9), "give --prf_hz"),
        ("a.npy", np.ones(9, complex), Radar(1e9, 1e3, 1e6), "one sample for each pulse"),
        ("a.npy", np.array([{"a": 1}], dtype=object), Radar(1e9, 1e3), "is not an .npy array"),
        ("a.mat", {"a": np.ones(9) * 1j, "b": np.ones(9) * 1j}, Radar(1e9, 1e3), "the arrays a, b; name one"),
    ],
)
def test_what_is_no_recording_says_why(tmp_path, name, content, radar, reason):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        savemat(path, content)
    else:
        np.save(path, content)
    with pytest.raises(Unreadable, match=reason):
        everything(read(path, radar))


def test_a_folder_that_is_named_like_a_file_cannot_be_read(tmp_path):
    for name in ("a.dat", "a.npy", "a.mat"):
        (tmp_path / name).mkdir()
        with pytest.raises(Unreadable, match="cannot be read: Is a directory"):
            read(tmp_path / name, Radar(1e9, 1e3))


def test_the_array_that_is_named_is_read(tmp_path):
    savemat(tmp_path / "a.mat", {"a": np.ones(9) * 1j, "b": 2 * np.ones(9) * 1j})
    assert everything(read(tmp_path / "a.mat", Radar(1e9, 1e3, variable="b")))[0, 0] == 2j
    with pytest.raises(Unreadable, match="no array 'c'; it has a, b"):
        read(tmp_path / "a.mat", Radar(1e9, 1e3, variable="c"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"v_max_m_s": 20.0}, "velocities up to 12.9 m/s; give a --v_max_m_s of at most that"),
        ({"window_s": 0.001}, "window_s holds 1 pulses"),
        ({"settle_s": 10.0}, "lasts 1 s, less than"),
        ({"mti_cutoff_m_s": 1e-9}, "can be cut off at 1000 pulses a second"),
        ({"range_m": (30.0, 40.0)}, "no range from 30 to 40 m: the file has every 0.375 m from 0 up to 3.37 m"),
    ],
)
def test_what_the_recording_cannot_show_is_told(fields, reason):
    step = SPEED_OF_LIGHT_M_S / (2 * BANDWIDTH)
    recording = Recording(np.ones((10, 1000), np.complex64), ("ranges", "pulses"), PRF, CARRIER, range_step_m=step)
    with pytest.raises(Unreadable, match=reason):
        velocity_over_time(recording, Chain(**{"v_max_m_s": 6.0} | fields))


@pytest.mark.parametrize("framed", [False, True])
def test_a_constant_echo_is_silent_not_rounding_errors(framed):
    """However strong, of any phase and after any range transform."""
    level = 3e4 * np.exp(1j * np.random.default_rng(0).uniform(0, 6, (64, 1)))
    samples = np.repeat(level, 3200, axis=1).astype(np.complex64)
    recording = Recording(samples, ("samples", "pulses"), PRF, CARRIER)
    if framed:
        recording = Recording(samples.reshape(64, 100, 32), ("samples", "frames", "pulses"), PRF, CARRIER, frame_s=0.05)
    with pytest.raises(Unreadable, match="is silent"):
        velocity_over_time(recording, Chain(6.0))


def test_blocks_do_not_change_the_amplitudes(monkeypatch):
    """A window may need the pulses of several blocks, and lie further from the next than a block is long."""
    rng = np.random.default_rng(1)
    samples = (rng.normal(size=(2, 3000)) + 1j * rng.normal(size=(2, 3000))).astype(np.complex64)
    recording = Recording(samples, ("ranges", "pulses"), PRF, CARRIER)
    for hop_s in (0.01, 0.3):
        chain = Chain(6.0, None, 0.2, hop_s)
        whole = velocity_over_time(recording, chain)
        for size in (2 * 7, 2 * 150, 2 * 1000):
            with monkeypatch.context() as patch:
                patch.setattr(stft, "BLOCK_SAMPLES", size)
                np.testing.assert_allclose(velocity_over_time(recording, chain), whole, rtol=1e-5)


class Counted:
    """Stands for 50 GB of samples: counts what is read at once, and returns noise of that size."""

    shape, dtype = (64, 100_000_000), np.dtype(np.complex64)

    def __init__(self):
        self.largest = self.reads = 0

    def __getitem__(self, index):
        columns = len(range(*index[1].indices(self.shape[1])))
        self.largest, self.reads = max(self.largest, columns * self.shape[0]), self.reads + 1
        return np.ones((self.shape[0], columns), self.dtype)


def test_memory_stays_flat_however_long_the_recording():
    """Of 50 GB at most 17 MB are read at once, and only as far as the columns that are asked for."""
    array = Counted()
    transform = Transform(Recording(array, ("ranges", "pulses"), 1e3, CARRIER), Chain(6.0))
    columns = sum(block.shape[1] for block in itertools.islice(transform, 3))
    assert transform.columns > 9_000_000 > columns > 20
    assert 8 * array.largest <= 17e6
    assert array.reads < 10
