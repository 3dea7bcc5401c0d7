"""Reader of Acconeer A121 recordings (HDF5, as the Exploration Tool writes them: Sparse IQ)."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np

from mdaug.radar.recording import Radar, Recording, Unreadable, described

CARRIER_HZ = 60.5e9  # of the A121: its wavelength is 4.96 mm
ENTRY = "session/group_0/entry_0"


def recognises(file: h5py.File) -> bool:
    """Return whether an HDF5 file is such a recording."""
    return "session/session_config" in file and "session/group_0/entry_0/result/frame" in file


def read(file: h5py.File, radar: Radar) -> Recording:
    """Read the frames (frames, sweeps, points) of one sensor; `variable` names another entry than the first.

    The phase of the A121 grows with distance, so a target that comes nearer turns clockwise. Its range is
    start_point + n step_length, in steps of 2.5 mm. Sweeps follow at sweep_rate within a frame; frames at what the
    ticks of the host say, with pauses in between.
    """
    entry = (radar.variable or ENTRY).strip("/").removesuffix("/result/frame")
    if f"{entry}/result/frame" not in file:
        raise Unreadable(f"has no '{entry}/result/frame'; entries are {', '.join(_entries(file))}")
    frames = file[f"{entry}/result/frame"]
    if frames.ndim != 3 or not {"real", "imag"} <= set(frames.dtype.names or ()):
        raise Unreadable(
            f"{entry}/result/frame is {frames.shape} of {frames.dtype}; (frames, sweeps, points) of real, imag expected"
        )
    if 0 in frames.shape:
        raise Unreadable("holds no samples")
    group = int(entry.split("/")[1].removeprefix("group_"))
    sensor = str(int(file[f"{entry}/sensor_id"][()])) if f"{entry}/sensor_id" in file else None
    config = _sensor_config(_json(file, "session/session_config"), group, sensor)
    metadata = _json(file, f"{entry}/metadata") if f"{entry}/metadata" in file else {}
    sweeps = frames.shape[1]
    if config.get("sweeps_per_frame", sweeps) != sweeps:
        raise Unreadable(f"sweeps_per_frame={config['sweeps_per_frame']} in session_config, but frames have {sweeps}")
    notes = []
    if len(entries := _entries(file)) > 1:
        notes.append(f"{entry} of {len(entries)} entries is read; --variable names another")

    # Time: sweeps within a frame, frames by the ticks.
    frame_s = 1 / config["frame_rate"] if config.get("frame_rate") else None
    ticks = np.asarray(file[f"{entry}/result/tick"], np.float64) if f"{entry}/result/tick" in file else np.empty(0)
    if len(ticks) > 1:
        steps = np.diff(ticks)
        if steps.min() <= 0:
            late = int(steps.argmin()) + 1
            raise Unreadable(
                f"tick {ticks[late]:.0f} of frame {late} is not after {ticks[late - 1]:.0f} of frame {late - 1}; "
                "timestamps must ascend"
            )
        second = _json(file, "server_info").get("ticks_per_second", 1_000_000) if "server_info" in file else 1_000_000
        frame_s = frame_s or float((ticks[-1] - ticks[0]) / (len(ticks) - 1) / second)
        if gaps := int((steps > 1.8 * np.median(steps)).sum()):
            notes.append(f"{gaps} gaps between frames are longer than 1.8 frames: frames are missing there")
    sweep_hz = config.get("sweep_rate") or metadata.get("max_sweep_rate")
    if config.get("continuous_sweep_mode") and sweep_hz:
        frame_s = sweeps / sweep_hz
    for name, meaning in (("data_saturated", "are saturated"), ("frame_delayed", "came late")):
        if f"{entry}/result/{name}" in file and (count := int(np.sum(file[f"{entry}/result/{name}"][:]))):
            notes.append(f"{count} of {len(frames)} frames {meaning}")

    # Ranges: evenly spaced where there is one subsweep.
    subsweeps = config.get("subsweeps") or [config]
    step_m, first_m = None, 0.0
    if len(subsweeps) == 1 and "step_length" in subsweeps[0]:
        base_m = metadata.get("base_step_length_m", 2.5e-3)
        step_m, first_m = base_m * subsweeps[0]["step_length"], base_m * subsweeps[0]["start_point"]
    else:
        notes.append(f"{len(subsweeps)} subsweeps: ranges are not known in metres")
    one = sweeps == 1  # pulses are the frames themselves
    header = Radar(CARRIER_HZ, 1 / frame_s if one and frame_s else sweep_hz, frame_s=None if one else frame_s)
    recording = Recording(
        frames,
        ("pulses", "", "ranges") if one else ("frames", "pulses", "ranges"),
        range_step_m=step_m,
        first_range_m=first_m,
        clockwise=True,
        decode=lambda values: values["real"].astype(np.float32) + 1j * values["imag"].astype(np.float32),
        layout="Acconeer A121 (HDF5)",
        notes=tuple(notes),
    )
    return described(recording, radar.over(header))


def _entries(file: h5py.File) -> list[str]:
    """Return the paths of all entries: one per sensor and group."""
    groups = [name for name in file["session"] if name.startswith("group_")]
    return [f"session/{group}/{entry}" for group in groups for entry in file[f"session/{group}"]]


def _sensor_config(session: Any, group: int, sensor: str | None) -> dict[str, Any]:
    """Return the configuration of one sensor of a session."""
    try:
        sensors = session["groups"][group]
        return sensors[sensor] if sensor in sensors else next(iter(sensors.values()))
    except (KeyError, IndexError, TypeError, StopIteration):
        raise Unreadable(f"session_config has no sensor in group {group}; found {str(session)[:80]}") from None


def _json(file: h5py.File, name: str) -> Any:
    """Return a JSON text of the file."""
    try:
        return json.loads(file[name][()])
    except (ValueError, TypeError) as error:
        raise Unreadable(f"{name} is not JSON: {error}") from None
