"""Writers of raw recordings in their published layouts, of a target of known velocity, for the tests of mdaug/radar.

Each takes a folder and a velocity (approaching: positive), and returns the path to read and what the user gives.
"""

from __future__ import annotations

import dataclasses
import json
import struct

import h5py
import numpy as np
from scipy.io import savemat

from mdaug.radar.recording import Radar
from mdaug.radar.sensor import SPEED_OF_LIGHT_M_S

from .radar_helpers import write_text

CARRIER, PRF, BANDWIDTH = 60e9, 2000.0, 1.5e9
WAVELENGTH = SPEED_OF_LIGHT_M_S / CARRIER
STEP = SPEED_OF_LIGHT_M_S / (2 * BANDWIDTH)
GIVEN = Radar(CARRIER, PRF)
SAMPLES, CHIRPS, RECEIVERS, FRAME_S = 16, 32, 4, 0.02


def turning(velocity_m_s: float, time: np.ndarray) -> np.ndarray:
    """The phase factor of a target that approaches with a velocity, counter-clockwise."""
    return np.exp(4j * np.pi * velocity_m_s * time / WAVELENGTH)


def chirps(velocity_m_s: float, range_bin: int = 3, frames: int = 40) -> np.ndarray:
    """Sweeps upwards (frames, chirps, receivers, samples) of a target, with a static wall; pauses between frames.

    Physics of a dechirped up-sweep: it beats with 2 R B / c cycles a sweep and turns with the phase 4 pi R / lambda.
    """
    time = np.arange(frames)[:, None] * FRAME_S + np.arange(CHIRPS) / PRF
    beat = np.exp(2j * np.pi * range_bin * np.arange(SAMPLES) / SAMPLES)
    moving = turning(velocity_m_s, time).conj()[:, :, None, None] * np.exp(0.7j * np.arange(RECEIVERS))[:, None] * beat
    return 300 * moving + 1000 * np.exp(2j * np.pi * 5 * np.arange(SAMPLES) / SAMPLES)


def int16(values: np.ndarray) -> np.ndarray:
    return np.round(values).astype("<i2")


def ancortek(folder, velocity):
    time = np.arange(2000) / 1000
    wavelength = SPEED_OF_LIGHT_M_S / 5.8e9
    beat = np.exp(2j * np.pi * 3 * np.arange(16) / 16)[:, None]
    return write_text(folder / "a.dat", beat * np.exp(-4j * np.pi * velocity * time / wavelength)), Radar()


def npy_vector(folder, velocity):
    np.save(folder / "a.npy", turning(velocity, np.arange(4000) / PRF))
    return folder / "a.npy", GIVEN


def npy_pulses_first(folder, velocity):
    np.save(folder / "a.npy", turning(velocity, np.arange(4000) / PRF)[:, None] * np.ones(8))
    return folder / "a.npy", dataclasses.replace(GIVEN, axes=("pulses", "ranges"))


def npy_real_cube(folder, velocity):
    """Real samples, antennas last."""
    np.save(folder / "a.npy", chirps(velocity).real.transpose(3, 0, 1, 2))
    axes = ("samples", "frames", "chirps", "antennas")
    return folder / "a.npy", Radar(CARRIER, PRF, BANDWIDTH, FRAME_S, axes)


def npz_cube(folder, velocity):
    np.savez(folder / "a.npz", cube=chirps(velocity).astype(np.complex64), t=np.arange(3))
    return folder / "a.npz", Radar(CARRIER, PRF, None, FRAME_S, ("frames", "chirps", "antennas", "samples"))


def npy_without_pauses(folder, velocity):
    """Frames that follow one another are one stretch of pulses."""
    np.save(folder / "a.npy", turning(velocity, np.arange(4000) / PRF).reshape(100, 40))
    return folder / "a.npy", dataclasses.replace(GIVEN, axes=("frames", "chirps"), frame_s=40 / PRF)


def range_doppler(folder, velocity):
    """Complex maps (frames, ranges, doppler), zero in the middle, rising velocity."""
    pulses = turning(velocity, np.arange(40)[:, None] * FRAME_S + np.arange(CHIRPS) / PRF) * np.hanning(CHIRPS)
    maps = np.zeros((40, 6, CHIRPS), complex)
    maps[:, 2] = np.fft.fftshift(np.fft.fft(pulses), axes=1)
    maps[:, 4, CHIRPS // 2] = 1e4  # a wall
    np.save(folder / "a.npy", np.abs(maps))
    return folder / "a.npy", Radar(CARRIER, PRF, None, FRAME_S, ("frames", "ranges", "doppler"))


def hdf5_by_path(folder, velocity):
    with h5py.File(folder / "a.h5", "w") as file:
        file["group/data"] = turning(velocity, np.arange(4000) / PRF)
        file["group/other"] = np.ones(10) * 1j
    return folder / "a.h5", dataclasses.replace(GIVEN, variable="/group/data")


def matlab_73(folder, velocity):
    """A 512-byte block before HDF5, arrays reversed, complex numbers as pairs (MathWorks: MAT-File Versions)."""
    samples = turning(velocity, np.arange(4000) / PRF) * np.ones((8, 1))  # in MATLAB: 8 x 4000
    with h5py.File(folder / "a.mat", "w", userblock_size=512) as file:
        pairs = np.empty(samples.T.shape, [("real", "f8"), ("imag", "f8")])
        pairs["real"], pairs["imag"] = samples.T.real, samples.T.imag
        file["Data"] = pairs
        file["fs"] = np.array([[PRF]])
    with open(folder / "a.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM")
    return folder / "a.mat", GIVEN


def matlab_5(folder, velocity):
    savemat(folder / "a.mat", {"Data": turning(velocity, np.arange(4000) / PRF) * np.ones((8, 1)), "fs": PRF})
    return folder / "a.mat", GIVEN


def acconeer(folder, velocity, ticks=None, **config):
    """As the Exploration Tool writes it. The phase grows with distance, as in the measured recordings."""
    wavelength = SPEED_OF_LIGHT_M_S / 60.5e9
    time = np.arange(200)[:, None] * 0.0175 + np.arange(16) / 1000
    frames = np.exp(-4j * np.pi * velocity * time / wavelength)[:, :, None] * np.array([0, 0, 900, 100, 0, 0]) + 2000
    with h5py.File(folder / "a.h5", "w") as file:
        entry = file.create_group("session/group_0/entry_0")
        pairs = np.empty(frames.shape, [("real", "<i2"), ("imag", "<i2")])
        pairs["real"], pairs["imag"] = int16(frames.real), int16(frames.imag)
        entry["result/frame"] = pairs
        entry["result/tick"] = np.arange(200) * 17500 + 299_077_693 if ticks is None else ticks
        entry["sensor_id"] = 1
        entry["metadata"] = json.dumps({"base_step_length_m": 0.0025, "max_sweep_rate": 11509.0})
        subsweep = {"start_point": 20, "num_points": 6, "step_length": 12}
        sensor = {"sweep_rate": 1000.0, "frame_rate": None, "sweeps_per_frame": 16, "subsweeps": [subsweep]} | config
        file["session/session_config"] = json.dumps({"groups": [{"1": sensor}]})
        file["server_info"] = json.dumps({"ticks_per_second": 1_000_000})
    return folder / "a.h5", Radar()


def dca1000(lanes: int, real: bool, q_first: bool = False):
    """SWRA581B: 4 lanes interleave receivers (4 I, 4 Q); 2 lanes give a receiver after another, in pairs (2 I, 2 Q)."""

    def write(folder, velocity):
        cube = chirps(velocity)
        parts = [cube.real] if real else [cube.imag, cube.real] if q_first else [cube.real, cube.imag]
        stack = int16(np.stack(parts))  # (parts, frames, chirps, receivers, samples)
        if lanes == 4:
            raw = stack.transpose(1, 2, 4, 0, 3)
        else:
            raw = stack.reshape(*stack.shape[:-1], -1, 1 if real else 2).transpose(1, 2, 3, 4, 0, 5)
        (folder / "a.bin").write_bytes(raw.tobytes() + bytes(77))
        shape = {"samples_per_chirp": SAMPLES, "chirps_per_frame": CHIRPS, "receivers": RECEIVERS}
        if q_first:
            (folder / "a.mmwave.json").write_text(json.dumps(studio(lanes, swapped=True)))
            return folder / "a.bin", Radar()
        return folder / "a.bin", Radar(CARRIER, PRF, BANDWIDTH, FRAME_S, lanes=lanes, real_samples=real, **shape)

    write.__name__ = f"dca1000_{lanes}_{'real' if real else 'complex'}{'_json' * q_first}"
    return write


def studio(lanes: int, swapped: bool) -> dict:
    """What mmWave Studio writes of such a capture: 60 GHz in the middle of 1.5 GHz, 500 microseconds a chirp."""
    profile = {
        "startFreqConst_GHz": 60 - 0.75 - 0.05,
        "idleTimeConst_usec": 440.0,
        "adcStartTimeConst_usec": 2.0,
        "rampEndTime_usec": 60.0,
        "freqSlopeConst_MHz_usec": 25.0,
        "numAdcSamples": SAMPLES,
        "digOutSampleRate": SAMPLES / 60e-6 / 1e3,
    }
    frame = {"chirpStartIdx": 0, "chirpEndIdx": 0, "numLoops": CHIRPS, "framePeriodicity_msec": 1e3 * FRAME_S}
    rf = {
        "rlChanCfg_t": {"rxChannelEn": "0xF", "txChannelEn": "0x1"},
        "rlAdcOutCfg_t": {"fmt": {"b2AdcBits": 2, "b2AdcOutFmt": 1}},
        "rlProfiles": [{"rlProfileCfg_t": profile}],
        "rlFrameCfg_t": frame,
    }
    capture = {
        "rlDevDataFmtCfg_t": {"iqSwapSel": int(swapped), "chInterleave": 1},
        "rlDevLaneEnable_t": {"laneEn": hex(2**lanes - 1)},
    }
    return {"mmWaveDevices": [{"rfConfig": rf, "rawDataCaptureConfig": capture}]}


def wav(bits: int, extensible: bool = False):
    """RIFF, little-endian, I left and Q right; before the samples a chunk of odd length."""

    def write(folder, velocity):
        time = np.arange(8000) / 4000
        pairs = np.stack([turning(velocity, time).real, turning(velocity, time).imag], axis=1) * 0.5
        if bits == 24:
            data = (pairs * 2**23).astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()
        elif bits == 8:
            data = (pairs * 127 + 128).astype("u1").tobytes()
        else:
            data = (pairs * 2**15).astype("<i2").tobytes() if bits == 16 else pairs.astype("<f4").tobytes()
        (folder / "a.wav").write_bytes(riff(data, 2, 4000, bits, 3 if bits == 32 else 1, extensible))
        return folder / "a.wav", Radar(CARRIER)

    write.__name__ = f"wav_{bits}"
    return write


def riff(data: bytes, channels: int, rate: int, bits: int, code: int = 1, extensible: bool = False) -> bytes:
    size = channels * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else code, channels, rate, rate * size, size, bits)
    if extensible:
        form += struct.pack("<HHIH14x", 22, bits, 3, code)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    return (
        b"RIFF"
        + struct.pack("<I", 4 + len(chunks) + 8 + len(data))
        + b"WAVE"
        + chunks
        + (b"data" + struct.pack("<I", len(data)) + data)
    )


def sigmf(datatype: str):
    """SigMF 1.x: I and Q interleaved, a header of 5 bytes before them."""

    def write(folder, velocity):
        signal = turning(velocity, np.arange(8000) / 4000)
        pairs = np.stack([signal.real, signal.imag], axis=1)
        scaled = {"cf32_le": pairs.astype("<f4"), "ci16_be": (pairs * 9e3).astype(">i2"), "cu8": pairs * 99 + 128}
        samples = scaled[datatype].astype("u1") if datatype == "cu8" else scaled[datatype]
        (folder / "a.sigmf-data").write_bytes(b"12345" + samples.tobytes())
        capture = {"core:sample_start": 0, "core:frequency": CARRIER, "core:header_bytes": 5}
        fields = {"core:datatype": datatype, "core:sample_rate": 4000, "core:version": "1.0.0"}
        meta = {"global": fields, "captures": [capture], "annotations": []}
        (folder / "a.sigmf-meta").write_text(json.dumps(meta))
        return folder / "a.sigmf-meta", Radar()

    write.__name__ = f"sigmf_{datatype}"
    return write
