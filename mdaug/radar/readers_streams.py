"""Readers of one stream of samples after a header: text of Ancortek radars, .wav of continuous-wave modules, SigMF."""

from __future__ import annotations

import json
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mdaug.radar.readers_arrays import require_small
from mdaug.radar.recording import Radar, Recording, Unreadable, described

HEADER_LINES = 4
SIGN_UNKNOWN = "one channel of real numbers: the sign of the velocity is unknown, so pictures are symmetric"


def read_ancortek(path: Path, radar: Radar) -> Recording:
    """Read the text file of an Ancortek radar, whole.

    Line 1: carrier in Hz; 2: sweep time in ms; 3: samples of a sweep; 4: bandwidth in Hz; then one complex
    number a line, such as -0.0123+0.0456i. Sweeps follow one another; a last one that is not whole is left out.
    The radar sweeps up, so what comes nearer turns clockwise (the published scripts turn their pictures for it).
    """
    require_small(path)
    numbers = path.read_bytes().replace(b"i", b"j").split()
    try:
        carrier, sweep_ms, per_sweep, bandwidth = (float(number) for number in numbers[:HEADER_LINES])
        samples = np.array(numbers[HEADER_LINES:]).astype(np.complex64)
    except (ValueError, OverflowError):
        raise Unreadable("is not a text file of four numbers and then one complex number a line") from None
    if not all(0 < number < np.inf for number in (carrier, sweep_ms, per_sweep)):
        raise Unreadable(f"has a header of {carrier:g} Hz, {sweep_ms:g} ms, {per_sweep:g} samples; all must be above 0")
    if not bandwidth > 0:
        raise Unreadable(
            "has bandwidth 0 in its header (continuous wave or FSK); save it as a complex .npy array instead"
        )
    sweeps, left = divmod(len(samples), int(per_sweep))
    notes = (f"{left} samples after the last whole sweep are left out",) if left else ()
    recording = Recording(
        samples[: sweeps * int(per_sweep)].reshape(sweeps, int(per_sweep)),
        ("pulses", "samples"),
        clockwise=True,
        layout="Ancortek text",
        notes=notes,
    )
    return described(recording, radar.over(Radar(carrier, 1000 / sweep_ms, bandwidth)))


def read_wav(path: Path, radar: Radar) -> Recording:
    """Read the sound file of a continuous-wave module: I left and Q right, or one channel; PCM or float, RIFF or RF64.

    Layout: "Multimedia Programming Interface and Data Specifications 1.0" (Microsoft, IBM 1991), EBU Tech 3306 (RF64).
    """
    size = path.stat().st_size
    code, channels, rate, bits, start, length = _wav_header(path, size)
    kind = {(1, 8): "u1", (1, 16): "<i2", (1, 24): "u1", (1, 32): "<i4", (3, 32): "<f4", (3, 64): "<f8"}.get(
        (code, bits)
    )
    if kind is None:
        raise Unreadable(f"has samples of format {code}, {bits} bits; PCM of 8 to 32 or float of 32 or 64 expected")
    if channels not in (1, 2):
        raise Unreadable(f"has {channels} channels; 1, or 2 (I and Q) expected")
    notes = []
    if length > size - start:
        notes.append(f"the file is cut: {size - start} of {length} bytes of samples are there")
        length = size - start
    frames = length // (channels * bits // 8)
    if frames == 0:
        raise Unreadable("holds no samples")
    shape = (frames, channels, 3) if bits == 24 else (frames, channels)
    samples = np.memmap(path, kind, "r", start, shape)
    if channels == 1:
        notes.append(SIGN_UNKNOWN)
    decode = {8: _offset_binary, 24: _of_24_bits}.get(bits, lambda values: values)
    axes = ("pulses", "iq" if channels == 2 else "")
    recording = Recording(samples, axes, decode=decode, layout=f"WAV, {bits} bits", notes=tuple(notes))
    return described(recording, radar.over(Radar(prf_hz=rate)))


def _wav_header(path: Path, size: int) -> tuple[int, int, int, int, int, int]:
    """Return format code, channels, rate, bits, and start and length of the samples in bytes."""
    form, data, long = None, None, None
    with open(path, "rb") as file:
        riff, _, wave = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
        if riff not in (b"RIFF", b"RF64") or wave != b"WAVE":
            raise Unreadable("is not a WAV file: it does not begin with RIFF or RF64, WAVE")
        while data is None and len(head := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            at = file.tell()
            if name == b"data":
                data = at, long if length == 2**32 - 1 and long else length
            elif name == b"fmt " and length >= 16:
                form = file.read(min(length, 40))
            elif name == b"ds64":
                long = struct.unpack("<8xQ", file.read(16))[0]
            file.seek(at + length + length % 2)
    if form is None or data is None:
        raise Unreadable(f"is not a whole WAV file: it has no '{'fmt' if form is None else 'data'}' in {size} bytes")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if code == 0xFFFE and len(form) >= 26:  # WAVE_FORMAT_EXTENSIBLE: the code begins the subformat
        code = struct.unpack("<H", form[24:26])[0]
    if rate == 0:
        raise Unreadable("has a rate of 0 samples a second")
    return code, channels, rate, bits, *data


def _offset_binary(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) - 128


def _of_24_bits(values: np.ndarray) -> np.ndarray:
    low, middle, high = np.moveaxis(values.astype(np.int32), -1, 0)
    return low | middle << 8 | (high ^ 128) - 128 << 16


def read_sigmf(path: Path, radar: Radar) -> Recording:
    """Read a SigMF recording: `path` is the .sigmf-meta, its samples lie in the .sigmf-data beside it.

    Layout: SigMF 1.x (sigmf.org): global core:datatype, core:sample_rate, core:num_channels (interleaved),
    core:trailing_bytes; captures with core:sample_start, core:frequency, core:header_bytes.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        fields, captures = meta["global"], meta.get("captures", [])
        datatype, channels = fields["core:datatype"], fields.get("core:num_channels", 1)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"is not the metadata of SigMF, JSON with global and core:datatype: {error!r}") from None
    found = re.fullmatch(r"([cr])(?=f32|f64|[iu]32|[iu]16|[iu]8)([fiu])(\d+)(_le|_be)?", str(datatype))
    if found is None:
        raise Unreadable(f"core:datatype={datatype}; such as cf32_le, ci16_le, ri16_be, cu8 expected")
    if not isinstance(channels, int) or channels < 1:
        raise Unreadable(f"core:num_channels={channels}; a number of at least 1 expected")
    data = path.with_suffix(".sigmf-data")
    if not data.is_file():
        raise Unreadable(f"has no samples: {data.name} is missing beside it")
    starts = [_number(capture, "core:sample_start", 0) for capture in captures]
    for earlier, later in pairwise(starts):
        if later <= earlier:
            raise Unreadable(f"captures begin at samples {earlier:g}, {later:g}; core:sample_start must ascend")
    frequencies = {capture["core:frequency"] for capture in captures if "core:frequency" in capture}
    if len(frequencies) > 1:
        listed = ", ".join(f"{value:g}" for value in sorted(frequencies))
        raise Unreadable(f"has captures at core:frequency {listed} Hz; one frequency expected")
    if any(_number(capture, "core:header_bytes", 0) for capture in captures[1:]):
        raise Unreadable("has core:header_bytes between its captures; only before the first they are read")

    # The samples, in the file.
    kind = np.dtype((">" if found[4] == "_be" else "<") + found[2] + str(int(found[3]) // 8))
    parts = 2 if found[1] == "c" else 1
    start = int(_number(captures[0], "core:header_bytes", 0)) if captures else 0
    length = data.stat().st_size - start - int(_number(fields, "core:trailing_bytes", 0))
    frames, left = divmod(length, kind.itemsize * parts * channels)
    if frames < 1:
        raise Unreadable(f"holds no samples: {data.name} has {data.stat().st_size} bytes")
    notes = [f"{left} bytes after the last whole sample are left out"] if left else []
    if len(captures) > 1:
        notes.append(f"{len(captures)} captures are read as one; pauses between them are not seen")
    if parts == 1:
        notes.append(SIGN_UNKNOWN)
    middle = 2 ** (int(found[3]) - 1) if found[2] == "u" else 0
    recording = Recording(
        np.memmap(data, kind, "r", start, (frames, channels, parts)),
        ("pulses", "antennas", "iq" if parts == 2 else ""),
        decode=(lambda values: values.astype(np.float64) - middle) if middle else (lambda values: values),
        layout=f"SigMF {datatype}",
        notes=tuple(notes),
    )
    rate = _number(fields, "core:sample_rate", None)
    frequency = _number(captures[0], "core:frequency", None) if captures else None
    return described(recording, radar.over(Radar(frequency or None, rate or None)))


def _number(fields: Any, name: str, default: Any) -> Any:
    """Return a number of the metadata; Unreadable for anything else."""
    value = fields.get(name, default) if isinstance(fields, dict) else default
    if value is not default and (not isinstance(value, int | float) or value < 0):
        raise Unreadable(f"{name}={value!r}; a number of at least 0 expected")
    return value
