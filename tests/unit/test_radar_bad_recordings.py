"""Recordings that lack something, are clipped, cut, not finite, too short or far larger than the memory, by reader."""

from __future__ import annotations

import dataclasses
import itertools
import json
import struct
import tracemalloc

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from mdaug.cli import main
from mdaug.radar.recording import Radar, Unreadable
from mdaug.radar.recordings import read
from mdaug.radar.stft import Chain, Transform

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
    acconeer,
    ancortek,
    dca1000,
    hdf5_by_path,
    matlab_5,
    matlab_73,
    npy_vector,
    npz_cube,
    riff,
    sigmf,
    turning,
    wav,
)

STREAMS = [ancortek, npy_vector, hdf5_by_path, matlab_5, matlab_73, wav(16), sigmf("cf32_le")]
"""Of these, pulses follow one another."""
SHAPE = {"samples_per_chirp": SAMPLES, "chirps_per_frame": CHIRPS, "receivers": RECEIVERS}


# What a file does not say.


@pytest.mark.parametrize("write", [npy_vector, npz_cube, hdf5_by_path, matlab_5, matlab_73, wav(16), dca1000(2, False)])
def test_a_missing_carrier_is_asked_for(tmp_path, write):
    path, radar = write(tmp_path, 0.5)
    with pytest.raises(Unreadable, match=r"does not say its carrier; give --carrier_hz"):
        read(path, dataclasses.replace(radar, carrier_hz=None))


@pytest.mark.parametrize("write", [npy_vector, npz_cube, hdf5_by_path, matlab_5, matlab_73, dca1000(2, False)])
def test_a_missing_rate_is_asked_for(tmp_path, write):
    path, radar = write(tmp_path, 0.5)
    with pytest.raises(Unreadable, match=r"does not say its pulses per second; give --prf_hz"):
        read(path, dataclasses.replace(radar, prf_hz=None))


def test_headers_that_lack_carrier_or_rate_are_asked_for_it(tmp_path):
    path, radar = sigmf("cf32_le")(tmp_path, 0.5)
    meta = json.loads(path.read_text())
    del meta["captures"][0]["core:frequency"]
    path.write_text(json.dumps(meta))
    with pytest.raises(Unreadable, match="give --carrier_hz"):
        read(path, radar)
    del meta["global"]["core:sample_rate"]
    path.write_text(json.dumps(meta))
    with pytest.raises(Unreadable, match="give --prf_hz"):
        read(path, Radar(CARRIER))
    path, radar = acconeer(tmp_path, 0.5, sweep_rate=None)
    with h5py.File(path, "r+") as file:
        del file["session/group_0/entry_0/metadata"]
    with pytest.raises(Unreadable, match="give --prf_hz"):
        read(path, radar)
    assert read(path, Radar(prf_hz=1000.0)).prf_hz == 1000


# Numbers.


def extremes(pairs: int) -> np.ndarray:
    """Return int16 (pairs, 2), all at full scale: every combination of the least and the largest value."""
    return np.tile(
        np.array([[-32768, -32768], [32767, 32767], [-32768, 32767], [32767, -32768]], "<i2"), (pairs // 4, 1)
    )


def full_scale(name: str, folder):
    """Write `extremes` by an integer format; return the path, the radar, and I and Q that are expected."""
    pairs = extremes(4096)
    expected = pairs[:, 0] + 1j * pairs[:, 1].astype(np.float64)
    if name == "wav_16":
        (folder / "a.wav").write_bytes(riff(pairs.tobytes(), 2, 4000, 16))
        return folder / "a.wav", Radar(CARRIER), expected
    if name == "wav_24":
        wide = np.where(pairs < 0, -(2**23), 2**23 - 1).astype("<i4")
        (folder / "a.wav").write_bytes(riff(wide.view("u1").reshape(-1, 4)[:, :3].tobytes(), 2, 4000, 24))
        return folder / "a.wav", Radar(CARRIER), wide[:, 0] + 1j * wide[:, 1]
    if name == "sigmf":
        path, radar = sigmf("ci16_be")(folder, 0.5)
        (folder / "a.sigmf-data").write_bytes(b"12345" + pairs.astype(">i2").tobytes())
        return path, radar, expected
    if name == "npy":
        np.save(folder / "a.npy", pairs)
        return folder / "a.npy", GIVEN, expected
    if name == "hdf5":
        with h5py.File(folder / "a.h5", "w") as file:
            file["data"] = pairs.view([("real", "<i2"), ("imag", "<i2")])[:, 0]
        return folder / "a.h5", GIVEN, expected
    savemat(folder / "a.mat", {"data": pairs})
    return folder / "a.mat", GIVEN, expected


@pytest.mark.parametrize("name", ["wav_16", "wav_24", "sigmf", "npy", "hdf5", "mat"])
def test_integers_at_full_scale_neither_wrap_nor_lose_their_sign(tmp_path, name):
    path, radar, expected = full_scale(name, tmp_path)
    recording = read(path, radar)
    samples = recording.block(0, recording.units)
    np.testing.assert_array_equal(samples[0, 0, 0], expected.astype(np.complex64))


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("lanes", [2, 4])
def test_sweeps_at_full_scale_do_not_overflow(tmp_path, lanes, real):
    """A constant of the least value is range 0 alone: as many times that value as there are samples."""
    path, radar = dca1000(lanes, real)(tmp_path, 0.5)
    path.write_bytes(np.full(path.stat().st_size // 2, -32768, "<i2").tobytes())
    block = read(path, radar).block(0, 2)
    strength = 32768 * SAMPLES * (1 if real else np.sqrt(2))
    np.testing.assert_allclose(np.abs(block[:, :, 0]), strength, rtol=1e-5)
    assert np.abs(block[:, :, 1:]).max() < 1e-3 * strength


def test_clipped_numbers_are_told(tmp_path, capsys):
    """A tone of twice the full scale: of a sine that is cut at half its height two thirds lie beyond."""
    tone = 2 * 32768 * turning(0.6, np.arange(8000) / PRF)
    np.save(tmp_path / "a.npy", np.stack([tone.real, tone.imag], axis=1).clip(-32768, 32767).astype(np.int16))
    assert main(["spectrogram", "--inspect", str(tmp_path / "a.npy"), "--output_dir", str(tmp_path)]) == 0
    levels = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  levels"))
    assert float(levels.partition("stands still; ")[2].partition(" %")[0]) == pytest.approx(67, abs=1)
    path, _ = acconeer(tmp_path, 0.6)
    assert main(["spectrogram", "--inspect", str(path), "--output_dir", str(tmp_path)]) == 0
    assert "full scale" not in capsys.readouterr().out


def spoil(path) -> None:
    """Put NaN in the place of a sample in the middle."""
    bad = np.array([np.nan], "<f4").tobytes()
    if path.suffix in (".wav", ".sigmf-meta"):
        samples = path.with_suffix(".sigmf-data") if path.suffix == ".sigmf-meta" else path
        data = samples.read_bytes()
        at = len(data) - 4 * 4000
        samples.write_bytes(data[:at] + bad + data[at + 4 :])
    elif path.suffix == ".npy":
        samples = np.load(path)
        samples[..., 2000] = np.nan
        np.save(path, samples)
    elif h5py.is_hdf5(path):
        with h5py.File(path, "r+") as file:
            array = file["group/data"] if path.suffix == ".h5" else file["Data"]
            values = array[2000]
            if values.dtype.names:
                values["imag"] = np.nan
            array[2000] = values if values.dtype.names else np.nan
    else:
        savemat(path, {"Data": np.full((8, 4000), np.nan + 0j)})


@pytest.mark.parametrize("write", [npy_vector, hdf5_by_path, matlab_5, matlab_73, wav(32), sigmf("cf32_le")])
def test_a_sample_that_is_no_number_is_found(tmp_path, write):
    path, radar = write(tmp_path, 0.5)
    spoil(path)
    with pytest.raises(Unreadable, match="not finite"):
        velocity_over_time(read(path, radar), Chain(1.0))


def test_magnitudes_below_zero_are_found_wherever_they_are(tmp_path):
    """The least int16 has no positive counterpart: its size would be negative."""
    maps = np.ones((40, 32), np.int16)
    maps[30, 3] = -32768
    np.save(tmp_path / "a.npy", maps)
    recording = read(tmp_path / "a.npy", Radar(CARRIER, PRF, None, FRAME_S, ("frames", "doppler")))
    with pytest.raises(Unreadable, match="perhaps decibels"):
        velocity_over_time(recording, Chain(1.0))


# Sizes.


@pytest.mark.parametrize("write", STREAMS, ids=lambda write: write.__name__)
def test_a_recording_shorter_than_a_window_says_how_long_it_is(tmp_path, write):
    path, radar = write(tmp_path, 0.5)
    with pytest.raises(Unreadable, match=r"lasts 2 s, less than settle_s \+ window_s"):
        velocity_over_time(read(path, radar), Chain(0.5, window_s=2.0))


def test_frames_of_few_pulses_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((50, 4), complex))
    radar = Radar(CARRIER, PRF, None, FRAME_S, ("frames", "pulses"))
    with pytest.raises(Unreadable, match="has 4 pulses a frame, with pauses between frames; 8 are needed"):
        velocity_over_time(read(tmp_path / "a.npy", radar), Chain(0.5))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (npy_vector, "is not an .npy array"),
        (npz_cube, "is not an .npz archive"),
        (hdf5_by_path, "is not an HDF5 file"),
        (matlab_5, "is not a MATLAB file"),
        (acconeer, "is not an HDF5 file"),
    ],
)
def test_an_array_that_was_cut_is_refused(tmp_path, write, reason):
    """Of streams and captures what is there is read, up to the last whole sample or frame; see `test_radar_readers`."""
    path, radar = write(tmp_path, 0.5)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])
    with pytest.raises(Unreadable, match=reason):
        read(path, radar)


def test_odd_bytes_after_the_last_sample_are_left_out_and_told(tmp_path):
    path, radar = sigmf("ci16_be")(tmp_path, 0.5)
    with open(tmp_path / "a.sigmf-data", "ab") as file:
        file.write(b"abc")
    recording = read(path, radar)
    assert recording.units == 8000
    assert recording.notes == ("3 bytes after the last whole sample are left out",)


# Files that are larger than the memory.

LARGE = 50 * 10**9


def sparse(path, size: int = LARGE, head: bytes = b""):
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def large_npy(folder):
    np.lib.format.open_memmap(folder / "a.npy", "w+", np.complex64, (64, LARGE // 512))
    return folder / "a.npy", Radar(CARRIER, 1e5)


def large_hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("data", (LARGE // 512, 64), np.complex64)
    return folder / "a.h5", Radar(CARRIER, 1e5, axes=("pulses", "ranges"))


def large_matlab(folder):
    with h5py.File(folder / "a.mat", "w", userblock_size=512) as file:
        file.create_dataset("data", (LARGE // 1024, 64), [("real", "f8"), ("imag", "f8")], chunks=(1024, 64))
    with open(folder / "a.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM")
    return folder / "a.mat", Radar(CARRIER, 1e5)


def large_acconeer(folder):
    path, radar = acconeer(folder, 0.5)
    with h5py.File(path, "r+") as file:
        entry = file["session/group_0/entry_0"]
        kind = entry["result/frame"].dtype
        del entry["result/frame"], entry["result/tick"]
        entry.create_dataset("result/frame", (LARGE // (4 * 16 * 100), 16, 100), kind, chunks=(64, 16, 100))
    return path, dataclasses.replace(radar, frame_s=0.0175)


def large_ti(folder):
    return sparse(folder / "a.bin"), Radar(CARRIER, PRF, BANDWIDTH, FRAME_S, **SHAPE)


def large_wav(folder):
    """RF64, which takes more than 4 GB."""
    form = struct.pack("<HHIIHH", 1, 2, 100_000, 400_000, 4, 16)
    head = b"RF64" + b"\xff" * 4 + b"WAVEds64" + struct.pack("<IQQQI", 28, LARGE, LARGE - 80, LARGE // 4, 0)
    head += b"fmt " + struct.pack("<I", 16) + form + b"data" + b"\xff" * 4
    return sparse(folder / "a.wav", LARGE, head), Radar(CARRIER)


def large_sigmf(folder):
    path, radar = sigmf("ci16_be")(folder, 0.5)
    sparse(folder / "a.sigmf-data")
    return path, dataclasses.replace(radar, prf_hz=1e5)


@pytest.mark.parametrize(
    "write", [large_npy, large_hdf5, large_matlab, large_acconeer, large_ti, large_wav, large_sigmf]
)
def test_memory_stays_flat_in_a_sparse_file_of_50_gb(tmp_path, write):
    """Opened, read at both ends, and transformed: three blocks take no more than one, and that is below 512 MB."""
    path, radar = write(tmp_path)
    tracemalloc.start()
    try:
        recording = read(path, radar)
        assert recording.pulses * recording.ranges * recording.antennas > 1e9
        per_unit = recording.pulses_per_frame * recording.ranges * recording.antennas
        last = recording.block(recording.units - max(1, 10**6 // per_unit), recording.units)
        assert not last.any()
        peaks = []
        for blocks in (1, 3):
            tracemalloc.reset_peak()
            for _ in itertools.islice(recording.blocks(1 << 21), blocks):
                pass
            for _ in itertools.islice(Transform(recording, Chain(0.5, hop_s=0.1)), blocks):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[0] < 512e6
    assert peaks[1] < 1.1 * peaks[0]
