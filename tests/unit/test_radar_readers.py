"""Readers of raw recordings: a file in each published layout, written from a formula, shows the formula's velocity.

Approaching is up: every reader is asked for a target of positive and of negative velocity.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mdaug.radar.recording import Radar, Unreadable
from mdaug.radar.recordings import READERS, files_of, find, read
from mdaug.radar.stft import Chain

from .radar_helpers import velocity_over_time
from .radar_layouts import (
    BANDWIDTH,
    CARRIER,
    CHIRPS,
    FRAME_S,
    GIVEN,
    PRF,
    RECEIVERS,
    SAMPLES,
    STEP,
    acconeer,
    ancortek,
    dca1000,
    hdf5_by_path,
    matlab_5,
    matlab_73,
    npy_pulses_first,
    npy_real_cube,
    npy_vector,
    npy_without_pauses,
    npz_cube,
    range_doppler,
    riff,
    sigmf,
    turning,
    wav,
)


def found_m_s(path, radar: Radar, **chain) -> float:
    """Velocity of the strongest row, in m/s."""
    recording = read(path, radar)
    v_max = recording.prf_hz * recording.wavelength_m / 4 * 0.9
    amplitudes = velocity_over_time(recording, Chain(**{"v_max_m_s": v_max, "settle_s": 0.1} | chain))
    axis = np.linspace(v_max, -v_max, len(amplitudes))
    return float(axis[amplitudes.mean(axis=1).argmax()])


WRITERS = [
    ancortek,
    npy_vector,
    npy_pulses_first,
    npy_real_cube,
    npz_cube,
    npy_without_pauses,
    range_doppler,
    hdf5_by_path,
    matlab_5,
    matlab_73,
    acconeer,
    *(dca1000(lanes, real) for lanes in (2, 4) for real in (False, True)),
    dca1000(2, False, q_first=True),
    *(wav(bits, bits == 24) for bits in (8, 16, 24, 32)),
    *(sigmf(datatype) for datatype in ("cf32_le", "ci16_be", "cu8")),
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("velocity", [0.8, -0.5])
def test_a_target_stands_at_its_velocity_and_approaching_is_up(tmp_path, write, velocity):
    """Two thirds of a bin of the shortest window (16 or 32 pulses) is the tolerance."""
    path, radar = write(tmp_path, velocity)
    assert found_m_s(path, radar) == pytest.approx(velocity, abs=0.11)
    if not write.__name__.endswith("_json"):
        mirrored = dataclasses.replace(radar, flip_velocity=True)
        assert found_m_s(path, mirrored) == pytest.approx(-velocity, abs=0.11)


def test_every_reader_is_among_them(tmp_path):
    """A reader that is added needs a writer here, so that its orientation is tested."""
    suffixes = set()
    for number, write in enumerate(WRITERS):
        (tmp_path / str(number)).mkdir()
        suffixes.add(write(tmp_path / str(number), 0.5)[0].suffix)
    assert {READERS[suffix] for suffix in suffixes} == set(READERS.values())


def test_headers_say_carrier_rate_frames_and_ranges(tmp_path):
    recording = read(*acconeer(tmp_path, 0.5))
    assert (recording.carrier_hz, recording.prf_hz, recording.pulses_per_frame) == (60.5e9, 1000.0, 16)
    assert recording.frame_s == pytest.approx(0.0175)
    assert (recording.first_range_m, recording.range_step_m) == pytest.approx((0.05, 0.03))
    recording = read(*dca1000(2, False, q_first=True)(tmp_path, 0.5))
    assert (recording.carrier_hz, recording.prf_hz) == pytest.approx((CARRIER, PRF))
    assert (recording.frame_s, recording.range_step_m) == pytest.approx((FRAME_S, STEP))
    assert read(*sigmf("cf32_le")(tmp_path, 0.5)).carrier_hz == CARRIER
    assert read(*wav(16)(tmp_path, 0.5)).prf_hz == 4000


def test_a_torn_capture_is_kept_up_to_its_last_whole_frame_and_says_so(tmp_path):
    path, radar = dca1000(2, False)(tmp_path, 0.5)
    recording = read(path, radar)
    assert recording.units == 40
    assert recording.notes == ("77 bytes after the last of 40 whole frames are left out",)
    path.write_bytes(path.read_bytes()[:-100])  # an odd cut through a frame
    recording = read(path, radar)
    assert recording.units == 39
    assert "left out" in recording.notes[0]
    data = riff(bytes(4000), 2, 4000, 16)
    (tmp_path / "b.wav").write_bytes(data[:-1001])
    assert "2999 of 4000 bytes" in read(tmp_path / "b.wav", Radar(CARRIER)).notes[0]


def test_transmitters_that_take_turns_are_antennas(tmp_path):
    """Two transmitters: every other chirp is one's, at half the rate."""
    path, radar = dca1000(2, False)(tmp_path, 0.5)
    two = dataclasses.replace(radar, transmitters=2, prf_hz=PRF / 2)
    recording = read(path, two)
    assert (recording.pulses_per_frame, recording.antennas) == (CHIRPS // 2, 2 * RECEIVERS)
    assert found_m_s(path, two) == pytest.approx(0.5, abs=0.11)


def test_one_channel_leaves_the_sign_open_and_says_so(tmp_path):
    tone = (np.cos(2 * np.pi * 320 * np.arange(8000) / 4000) * 1e4).astype("<i2")
    (tmp_path / "a.wav").write_bytes(riff(tone.tobytes(), 1, 4000, 16))
    recording = read(tmp_path / "a.wav", Radar(CARRIER))
    assert "the sign of the velocity is unknown" in recording.notes[0]
    amplitudes = velocity_over_time(recording, Chain(2.0))
    np.testing.assert_allclose(amplitudes, amplitudes[::-1], rtol=1e-2, atol=1e-3 * amplitudes.max())


def test_a_range_gate_follows_the_target_and_leaves_the_rest_out(tmp_path):
    """The target walks through 8 ranges; a weaker one of another velocity in other ranges is seen without the gate."""
    time = np.arange(8000) / PRF
    samples = np.zeros((20, 8000), complex)
    samples[5 + (time * 2).astype(int), np.arange(8000)] = turning(0.8, time)
    samples[18] = 0.5 * turning(-1.5, time)
    np.save(tmp_path / "a.npy", samples)
    rows = {}
    for follow in (None, 2):
        amplitudes = velocity_over_time(read(tmp_path / "a.npy", GIVEN), Chain(2.0, follow_ranges=follow))
        axis = np.linspace(2.0, -2.0, len(amplitudes))
        mean = amplitudes.mean(axis=1) / amplitudes.mean(axis=1).max()
        rows[follow] = mean[np.abs(axis - 0.8).argmin()], mean[np.abs(axis + 1.5).argmin()]
    assert rows[2][0] > 0.8
    assert rows[None][1] > 0.4
    assert rows[2][1] < 0.05


def test_what_a_reader_takes_along_is_part_of_the_recording(tmp_path):
    (tmp_path / "walk").mkdir()
    sigmf("cf32_le")(tmp_path / "walk", 0.5)
    dca1000(2, False, q_first=True)(tmp_path / "walk", 0.5)
    sources, rejected = find(tmp_path, glasgow=False, class_pattern=None)
    assert [source.path for source in sources] == ["walk/a.bin", "walk/a.sigmf-meta"]
    assert not rejected
    assert [len(files_of(tmp_path / source.path)) for source in sources] == [2, 2]


def npy(array, **radar):
    def write(folder):
        np.save(folder / "a.npy", array)
        return folder / "a.npy", dataclasses.replace(GIVEN, **radar)

    return write


def meta(fields=None, captures=(), data=bytes(800)):
    def write(folder):
        (folder / "a.sigmf-data").write_bytes(data)
        content = {"global": {"core:datatype": "ci16_le", "core:sample_rate": 1e3} | (fields or {})}
        (folder / "a.sigmf-meta").write_text(json.dumps(content | {"captures": list(captures)}))
        return folder / "a.sigmf-meta", GIVEN

    return write


def binary(size: int, **radar):
    def write(folder):
        (folder / "a.bin").write_bytes(bytes(size))
        shape = {"samples_per_chirp": SAMPLES, "chirps_per_frame": CHIRPS, "receivers": RECEIVERS}
        return folder / "a.bin", Radar(CARRIER, PRF, BANDWIDTH, FRAME_S, **shape | radar)

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (npy(np.ones((4000, 512), np.complex64)), r"4000 ranges of only 512 pulses\? .* --axes pulses,ranges if"),
        (npy(np.ones((4, 5, 6), complex)), "names such as --axes frames,chirps"),
        (npy(np.ones((9, 3), complex), axes=("pulses",)), "of 2 axes, but --axes pulses names 1"),
        (npy(np.ones((9, 3), complex), axes=("pulses", "height")), "an axis 'height'; axes are frames"),
        (npy(np.ones((9, 3), complex), axes=("pulses", "chirps")), "each may be there only once"),
        (npy(np.ones((9, 3), complex), axes=("antennas", "ranges")), "pulses or frames are needed"),
        (npy(np.ones((9, 3)), axes=("pulses", "ranges")), "complex numbers are needed, or an axis iq"),
        (npy(np.ones((9, 3)), axes=("pulses", "iq")), "an axis iq has length 2"),
        (npy(np.ones((9, 8), complex), axes=("frames", "chirps")), "9 frames; give --frame_s, .*; 0.004 where"),
        (npy(np.ones((9, 8), complex), axes=("frames", "chirps"), frame_s=1e-3), "frame_s=0.001 is shorter than its 8"),
        (npy(-np.ones((9, 8)), axes=("frames", "doppler"), frame_s=0.1), "perhaps decibels"),
        (npy(np.full(9000, 1e300 + 0j)), "not finite"),
        (npy(np.zeros((0, 3), complex)), "holds no samples"),
        (
            lambda folder: acconeer(folder, 1, ticks=np.r_[0:99, 50, 100:200]),
            "tick 50 of frame 99",
        ),
        (lambda folder: acconeer(folder, 1, sweeps_per_frame=8), "sweeps_per_frame=8 .* frames have 16"),
        (binary(10**5, samples_per_chirp=None, receivers=None), "--samples_per_chirp, --receivers, or a.mmwave.json"),
        (binary(8191), "8191 bytes, less than one frame of 8192: 32 chirps x 4 receivers x 16 complex .* 2 lanes"),
        (binary(10**5, samples_per_chirp=15), "samples_per_chirp=15 must be even"),
        (binary(10**5, samples_per_chirp=2**62), "less than one frame of 2361183241434822606848"),
        (binary(10**5, transmitters=3), "chirps_per_frame=32 must be a multiple of transmitters=3"),
        (meta({"core:datatype": "cf16_le"}), "core:datatype=cf16_le; such as"),
        (meta({"core:datatype": "x"}), "core:datatype=x; such as cf32_le"),
        (meta({"core:sample_rate": "fast"}), "core:sample_rate='fast'; a number"),
        (meta(captures=[{"core:sample_start": 90}, {"core:sample_start": 10}]), "core:sample_start must ascend"),
        (meta(captures=[{"core:frequency": 1e9}, {"core:sample_start": 10, "core:frequency": 2e9}]), "one frequency"),
        (meta(data=bytes(3)), "holds no samples: a.sigmf-data has 3 bytes"),
    ],
)
def test_what_cannot_be_read_names_what_was_found_and_what_is_expected(tmp_path, write, reason):
    path, radar = write(tmp_path)
    with pytest.raises(Unreadable, match=reason):
        velocity_over_time(read(path, radar), Chain(1.0))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"\x89HDF\r\n\x1a\nbroken", b"{}", b"[1]"])
@pytest.mark.parametrize("name", ["a.wav", "a.h5", "a.mat", "a.npz", "a.npy", "a.bin", "a.sigmf-meta", "a.dat"])
def test_junk_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable):
        read(tmp_path / name, GIVEN)


def test_files_that_would_have_to_be_read_whole_are_refused_when_too_large(tmp_path):
    """A sparse file of 50 GB: nothing of it is read."""
    for name in ("a.dat", "a.mat", "a.npz"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(50 * 10**9)
        with pytest.raises(Unreadable, match=r"has 50\.0 GB, and .* is read whole, up to 2\.1 GB; save"):
            read(tmp_path / name, GIVEN)
    with open(tmp_path / "a.bin", "wb") as file:
        file.truncate(50 * 10**9)
    shape = {"samples_per_chirp": SAMPLES, "chirps_per_frame": CHIRPS, "receivers": RECEIVERS}
    assert read(tmp_path / "a.bin", Radar(CARRIER, PRF, BANDWIDTH, FRAME_S, **shape)).units == 50 * 10**9 // 8192
