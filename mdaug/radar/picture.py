"""What the presets share: the sensor of a run with the user's numbers, levels from a signal, bytes from levels."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from mdaug.radar.echo import receive
from mdaug.radar.options import SimulateConfig
from mdaug.radar.sensor import Sensor
from mdaug.radar.stft import remove_clutter, spectrogram
from shards.colormap import jet
from shards.errors import UserError

MOST_PULSES = 1_000_000  # of a picture; the presets take 7,205 and 19,264


def sensor_of(config: SimulateConfig, preset: Sensor) -> Sensor:
    """Return the sensor of a preset with the numbers that the user gave instead.

    Raises UserError for more pulses than the memory holds, and for a window that does not fit them.
    """
    given = {name: getattr(config, name) for name in ("carrier_hz", "v_max_m_s", "duration_s", "window_s")}
    sensor = dataclasses.replace(preset, **{name: value for name, value in given.items() if value is not None})
    pulses = round(sensor.duration_s * sensor.prf_hz)
    if pulses > MOST_PULSES:
        raise UserError(
            f"a picture of duration_s {sensor.duration_s:g} with v_max_m_s {sensor.v_max_m_s:g} at carrier_hz "
            f"{sensor.carrier_hz:g} takes {pulses:.3g} pulses; at most {MOST_PULSES:,} are accepted"
        )
    if not 8 <= sensor.window_samples <= pulses:
        raise UserError(
            f"window_s is {sensor.window_s:g}: {sensor.window_samples} pulses at {sensor.prf_hz:.0f} Hz; "
            f"accepted are 8 pulses up to the {pulses} of duration_s"
        )
    return sensor


def sensor_columns(sensor: Sensor, clip_db: float) -> dict[str, float]:
    """Return the columns of the metadata that describe the radar and the picture."""
    names = ("carrier_hz", "v_max_m_s", "duration_s", "window_s", "mti_cutoff_m_s")
    return {name: getattr(sensor, name) for name in names} | {"prf_hz": round(sensor.prf_hz, 3), "clip_db": clip_db}


def record(echo: np.ndarray, row: dict, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    """Return the power (rows, columns) of an echo, received with the noise and clutter that its row names."""
    names = ("snr_db", "clutter_to_signal_db", "iq_image_db")
    samples = receive(echo, sensor.prf_hz, rng, **{name: row[name] for name in names})
    return spectrogram(remove_clutter(samples, sensor), sensor)


def encode(levels: np.ndarray, mode: str, **options) -> bytes:
    """Return 8-bit levels (H, W) as the bytes of an image file, in colour (mode "rgb") or not ("gray")."""
    data = io.BytesIO()
    Image.fromarray(jet()[levels] if mode == "rgb" else levels).save(data, **options)
    return data.getvalue()
