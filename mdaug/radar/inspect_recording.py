"""`mdaug spectrogram --inspect FILE`: what a reader sees in a file, in words and as a small picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from mdaug.radar.image_folder import encode, write_picture
from mdaug.radar.recording import Radar, Recording, Unreadable
from mdaug.radar.recordings import look
from mdaug.radar.stft import SILENT, Chain, Transform, brightness
from shards.errors import UserError

SIZE = 256  # rows and columns of the picture
MOST_COLUMNS = 4096  # of the beginning of a recording
UNKNOWN_HZ = 1e9, 1.0  # carrier and rate that stand in where they are not known


def inspect(path: Path, radar: Radar, folder: Path) -> str:
    """Return lines about a recording, and draw its beginning into `folder`; UserError where it cannot be read."""
    try:
        recording = look(path, radar)
        count = min(recording.units, 4096 // recording.pulses_per_frame or 1)
        levels = _levels(recording.raw(0, count), recording.block(0, count))
    except Unreadable as error:
        raise UserError(f"{path} {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    target = folder / f"{path.name}.png"
    return "\n".join([str(path), *_lines(recording), f"  levels      {levels}", _draw(recording, target)])


def _lines(recording: Recording) -> Iterable[str]:
    """Yield a line for everything that is known."""
    array, axes = recording.array, [axis for axis in recording.axes if axis]
    yield f"  read as     {recording.layout}"
    yield f"  array       {tuple(array.shape)} of {array.dtype}"
    shape = [length for length, axis in zip(recording.decoded_shape, recording.axes, strict=True) if axis]
    yield f"  axes        {', '.join(f'{length} {axis}' for length, axis in zip(shape, axes, strict=True))}"
    prf, carrier = recording.prf_hz, recording.carrier_hz
    yield f"  rate        {f'{prf:g} pulses a second' if prf else 'unknown; give --prf_hz'}"
    if "frames" in axes and recording.frame_s:
        pause = "one spectrum each" if recording.framed else "without a pause"
        if recording.framed and prf and "doppler" not in axes:
            pause = f"a pause of {1e3 * (recording.frame_s - recording.pulses_per_frame / prf):.3g} ms after each"
        yield f"  frames      every {1e3 * recording.frame_s:.4g} ms, {pause}"
    yield f"  carrier     {f'{carrier / 1e9:.6g} GHz' if carrier else 'unknown; give --carrier_hz'}"
    if prf:
        yield f"  duration    {recording.duration_s:.4g} s"
    if prf and carrier:
        yield f"  velocities  up to {prf * recording.wavelength_m / 4:.3g} m/s, approaching ones up"
    if recording.range_step_m:
        last = recording.first_range_m + recording.range_step_m * (recording.ranges - 1)
        yield f"  ranges      {recording.first_range_m:.3g} to {last:.3g} m, every {recording.range_step_m:.3g} m"
    for note in recording.notes:
        yield f"  note        {note}"


def _levels(raw: np.ndarray, block: np.ndarray) -> str:
    """Say how strong the beginning is, how much of it stands still, and of signed integers how many are clipped."""
    magnitudes = np.abs(block)
    still = np.abs(block.mean(axis=(0, 3))) if np.iscomplexobj(block) else np.zeros(1)
    share = float(np.sum(np.square(still)) / max(float(np.mean(np.square(magnitudes), axis=(0, 3)).sum()), 1e-30))
    said = f"{magnitudes.min():.3g} to {magnitudes.max():.3g}; {100 * share:.0f} % of the power stands still"
    numbers = np.stack([raw[name] for name in raw.dtype.names]) if raw.dtype.names else raw
    if numbers.dtype.kind == "i":
        clipped = np.isin(numbers, [np.iinfo(numbers.dtype).min, np.iinfo(numbers.dtype).max]).mean()
        said += f"; {100 * clipped:.2g} % of the numbers are at full scale, where receivers clip" if clipped else ""
    return said


def _draw(recording: Recording, target: Path) -> str:
    """Draw all velocities of the beginning; return a line that says what is in the picture."""
    known = dataclasses.replace(
        recording,
        carrier_hz=recording.carrier_hz or UNKNOWN_HZ[0],
        prf_hz=recording.prf_hz or UNKNOWN_HZ[1],
    )
    prf = known.prf_hz
    assert prf is not None
    v_max = prf * known.wavelength_m / 4
    window = max(8, min(256, known.pulses // 16))
    chain = Chain(v_max, None, window / prf, max(1, window // 4) / prf, v_max / 100, 0.0)
    try:
        transform = Transform(known, chain)
        blocks, columns = [], 0
        for block in islice(transform, MOST_COLUMNS):
            blocks.append(block)
            columns += block.shape[1]
            if columns >= MOST_COLUMNS:
                break
        amplitudes = np.concatenate(blocks, axis=1)[:, :MOST_COLUMNS]
    except Unreadable as error:
        return f"  picture     none: the recording {error}"
    if amplitudes.max() <= transform.floor:
        return f"  picture     none: the recording {SILENT}"
    picture = Image.fromarray(brightness(amplitudes, 40, amplitudes.max())).resize((SIZE, SIZE))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_picture(target, encode((np.asarray(picture) * 255).clip(0, 255).astype(np.uint8), "gray", format="PNG"))
    shown_s = amplitudes.shape[1] * transform.hop_s
    edge = f"{v_max:.3g} m/s" if recording.prf_hz and recording.carrier_hz else "half the rate"
    time = f"the first {shown_s:.3g} s" if recording.prf_hz else f"{shown_s:.3g} pulses"
    return f"  picture     {target}: {time}, from +{edge} (top) to the same below, 40 dB"
