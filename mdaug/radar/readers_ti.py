"""Reader of raw captures of Texas Instruments radars through a DCA1000 card (.bin).

Layout: "Mmwave Radar Device ADC Raw Data Capture" (SWRA581B) and section 24 of the mmWave Studio User's Guide: int16,
little-endian, frame after frame, loop after loop, transmitter after transmitter. Within a chirp:

- 4 lanes (xWR12xx, xWR14xx; interleaved): for each sample one number of each of 4 receivers, real ones; complex: 4
  real parts, then 4 imaginary ones. A receiver that is off leaves its place empty.
- 2 lanes (xWR16xx, xWR18xx, xWR68xx; not interleaved): all samples of the first receiver, then of the next; complex:
  in pairs of two real parts and two imaginary ones.

The JSON files are those that mmWave Studio writes: NAME.mmwave.json with what the radar did and NAME.setup.json, which
is not needed. Flags overrule it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mdaug.radar.recording import Radar, Recording, Unreadable, described

LAYOUT = ("samples_per_chirp", "chirps_per_frame", "receivers")
LANES = 4  # of the interleaved layout, whatever the number of receivers


def companion(path: Path) -> Path | None:
    """Return the JSON that describes a capture, if it lies beside it."""
    names = (f"{path.stem}.mmwave.json", f"{path.stem.removesuffix('_Raw_0')}.mmwave.json", f"{path.stem}.json")
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def read(path: Path, radar: Radar) -> Recording:
    """Read a capture, one chirp of each transmitter per loop; its samples stay on disk.

    A target that comes nearer turns clockwise: TI's phase is 4 pi R / lambda ("The fundamentals of millimeter wave
    radar sensors", SPYY005). `chirps_per_frame` counts those of all transmitters.
    """
    described_by = companion(path)
    header, q_first = _of_json(described_by) if described_by else (Radar(), False)
    radar = radar.over(header)
    if missing := [name for name in LAYOUT if getattr(radar, name) is None]:
        raise Unreadable(
            f"has no header; give {', '.join('--' + name for name in missing)}, or {path.stem}.mmwave.json"
        )
    samples, chirps, receivers = (int(getattr(radar, name)) for name in LAYOUT)
    transmitters, lanes, real = radar.transmitters or 1, radar.lanes or 2, bool(radar.real_samples)
    if chirps % transmitters:
        raise Unreadable(f"chirps_per_frame={chirps} must be a multiple of transmitters={transmitters}")
    if receivers > LANES:
        raise Unreadable(f"receivers={receivers} must be at most {LANES}")
    if lanes == 2 and not real and samples % 2:
        raise Unreadable(f"samples_per_chirp={samples} must be even: on 2 lanes complex samples come in pairs")
    loops = chirps // transmitters

    # One frame in int16 numbers; what follows the last whole frame is left out.
    if lanes == LANES:
        chirp: tuple[int, ...] = (samples, LANES) if real else (samples, 2, LANES)
    else:
        chirp = (receivers, samples) if real else (receivers, samples // 2, 2, 2)
    frame = (loops, transmitters, *chirp)
    size, frame_bytes = path.stat().st_size, 2 * int(np.prod(frame, dtype=object))
    frames, left = divmod(size, frame_bytes)
    if frames == 0:
        raise Unreadable(
            f"has {size} bytes, less than one frame of {frame_bytes}: {chirps} chirps x {receivers} receivers x "
            f"{samples} {'real' if real else 'complex'} samples on {lanes} lanes"
        )
    notes = [f"{left} bytes after the last of {frames} whole frames are left out"] if left else []
    if described_by is not None:
        notes.append(f"described by {described_by.name}")

    def decode(raw: np.ndarray) -> np.ndarray:
        """Return (frames, loops, transmitters x receivers, samples)."""
        if not real:
            axis = 4 if lanes == LANES else 5
            first, second = np.moveaxis(raw, axis, 0)
            if q_first:
                first, second = second, first
            raw = first.astype(np.float32) + 1j * second.astype(np.float32)
        if lanes == LANES:
            raw = raw.swapaxes(3, 4)[..., :receivers, :]
        return raw.reshape(len(raw), loops, transmitters * receivers, samples)

    recording = Recording(
        np.memmap(path, "<i2", "r", 0, (frames, *frame)),
        ("frames", "pulses", "antennas", "samples"),
        clockwise=True,
        decode=decode,
        layout=f"TI DCA1000, {lanes} lanes, {'real' if real else 'complex'}",
        notes=tuple(notes),
    )
    return described(recording, radar)


def _of_json(path: Path) -> tuple[Radar, bool]:
    """Return what the JSON of mmWave Studio says, and whether Q comes before I."""
    try:
        device = json.loads(path.read_text(encoding="utf-8"))["mmWaveDevices"][0]
        rf, capture = device["rfConfig"], device.get("rawDataCaptureConfig", {})
        profile, frame = rf["rlProfiles"][0]["rlProfileCfg_t"], rf["rlFrameCfg_t"]
        samples, rate_hz = int(profile["numAdcSamples"]), 1e3 * profile["digOutSampleRate"]
        slope_hz_s = 1e12 * profile["freqSlopeConst_MHz_usec"]
        sampled_s = samples / rate_hz
        middle_s = 1e-6 * profile["adcStartTimeConst_usec"] + sampled_s / 2
        transmitters = int(frame["chirpEndIdx"]) - int(frame["chirpStartIdx"]) + 1
        chirp_s = 1e-6 * (profile["idleTimeConst_usec"] + profile["rampEndTime_usec"])
        lanes = _ones(capture.get("rlDevLaneEnable_t", {}).get("laneEn", "0x3"))
        radar = Radar(
            carrier_hz=1e9 * profile["startFreqConst_GHz"] + slope_hz_s * middle_s,
            prf_hz=1 / (chirp_s * transmitters),
            bandwidth_hz=abs(slope_hz_s) * sampled_s,
            frame_s=1e-3 * frame["framePeriodicity_msec"],
            samples_per_chirp=samples,
            chirps_per_frame=int(frame["numLoops"]) * transmitters,
            receivers=_ones(rf["rlChanCfg_t"]["rxChannelEn"]),
            transmitters=transmitters,
            lanes=4 if lanes == LANES else 2,
            real_samples=rf["rlAdcOutCfg_t"]["fmt"]["b2AdcOutFmt"] in (0, 3),  # real, pseudo-real
        )
        swapped = bool(capture.get("rlDevDataFmtCfg_t", {}).get("iqSwapSel", 0))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise Unreadable(f"{path.name} is not a configuration of mmWave Studio: {error!r}") from None
    if lanes not in (2, 4):
        raise Unreadable(f"laneEn in {path.name} enables {lanes} lanes; 2 or 4 expected")
    return radar, swapped


def _ones(mask: Any) -> int:
    """Return the number of bits that are set in a mask such as "0xF"."""
    return bin(int(mask, 16) if isinstance(mask, str) else int(mask)).count("1")
