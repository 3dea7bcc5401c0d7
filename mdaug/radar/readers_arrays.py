"""Readers of arrays without a header: .npy, .npz, .mat of all versions, HDF5 by path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.io import loadmat

from mdaug.radar import readers_acconeer
from mdaug.radar.recording import ALIASES, READ_WHOLE, Radar, Recording, Unreadable, described

EXAMPLE = "--axes frames,chirps,antennas,samples"
PARTS = (("real", "imag"), ("r", "i"), ("re", "im"))  # names of a complex number's parts in HDF5


def read_npy(path: Path, radar: Radar) -> Recording:
    """Read an .npy file; its samples stay on disk."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        if "mmap an empty file" in str(error):
            raise Unreadable("holds no samples") from None
        raise Unreadable(f"is not an .npy array: {error}") from None
    return from_array(array, radar, "NumPy array")


def read_npz(path: Path, radar: Radar) -> Recording:
    """Read an array of an .npz file, whole."""
    require_small(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile and zlib raise their own for damaged files
        raise Unreadable(f"is not an .npz archive: {error}") from None
    return from_array(chosen(arrays, radar.variable), radar, "NumPy archive")


def read_mat(path: Path, radar: Radar) -> Recording:
    """Read an array of a MATLAB file; up to version 7 it is read whole, version 7.3 is HDF5 and stays on disk."""
    if h5py.is_hdf5(path):
        # MATLAB writes arrays column by column, HDF5 names axes row by row: they are reversed.
        return from_array(chosen(_datasets(path), radar.variable), radar, "MATLAB 7.3 file", reverse=True)
    require_small(path)
    with open(path, "rb") as file:
        try:
            content = loadmat(file)
        except Exception as error:  # what loadmat raises for damaged files is not documented
            raise Unreadable(f"is not a MATLAB file: {error}") from None
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    return from_array(chosen(arrays, radar.variable), radar, "MATLAB file")


def read_hdf5(path: Path, radar: Radar) -> Recording:
    """Read an Acconeer recording, or the array at the path `variable` of any other HDF5 file."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if path.is_dir():
            raise
        raise Unreadable(f"is not an HDF5 file: {error}") from None
    if readers_acconeer.recognises(file) and (radar.variable is None or radar.variable.count("entry_") == 1):
        return readers_acconeer.read(file, radar)
    return from_array(chosen(_datasets(path), radar.variable), radar, "HDF5 array")


def from_array(array: Any, radar: Radar, layout: str, *, reverse: bool = False) -> Recording:
    """Return the recording of an array whose axes the user names, or that has so few that they can be guessed.

    Args:
        array: numpy array, memory map or HDF5 dataset.
        radar: what the user says.
        layout: what the file is.
        reverse: the axes lie in the file from the last to the first.
    """
    shape = array.shape[::-1] if reverse else array.shape
    parts = next((pair for pair in PARTS if array.dtype.names and set(pair) <= set(array.dtype.names)), None)
    if 0 in shape:
        raise Unreadable("holds no samples")
    notes = []
    if radar.axes is not None:
        axes = tuple(ALIASES.get(axis, axis) for axis in radar.axes)
        if len(axes) != len(shape):
            raise Unreadable(
                f"is an array {shape} of {len(shape)} axes, but --axes {','.join(radar.axes)} names {len(axes)}"
            )
    else:
        axes = _guess(shape, array.dtype if parts is None else np.dtype(complex), radar)
        notes.append(f"the axes are guessed: {', '.join(axis for axis in axes if axis)}; --axes settles it")
    complex_values = parts is not None or array.dtype.kind == "c" or "iq" in axes
    if not complex_values and not {"samples", "doppler"} & set(axes):
        raise Unreadable(f"is an array {shape} of {array.dtype}; complex numbers are needed, or an axis iq of length 2")
    if "iq" in axes and (shape[axes.index("iq")] != 2 or array.dtype.kind == "c" or parts is not None):
        raise Unreadable(f"is an array {shape} of {array.dtype}; an axis iq has length 2 and real numbers")
    if "samples" in axes and shape[axes.index("samples")] < 2:
        raise Unreadable(f"is an array {shape}; sweeps of at least 2 samples are needed")
    # An up-sweep beats with +2 R B / c and turns with +4 pi R / lambda: what comes nearer turns clockwise.
    recording = Recording(
        array,
        axes[::-1] if reverse else axes,
        clockwise="samples" in axes,
        decode=_joined(parts),
        layout=layout,
        notes=tuple(notes),
    )
    return described(recording, radar)


def _guess(shape: tuple[int, ...], dtype: np.dtype, radar: Radar) -> tuple[str, ...]:
    """Return names of the axes of an array that can mean one thing only; Unreadable asks for them otherwise."""
    if dtype.kind != "c":
        if len(shape) == 2 and shape[1] == 2:
            return "pulses", "iq"
        raise Unreadable(
            f"is an array {shape} of {dtype}; complex numbers, or (n, 2) real ones, are needed, or names of its axes "
            f"such as {EXAMPLE}"
        )
    long = [axis for axis, length in enumerate(shape) if length > 1]
    fast = "ranges" if radar.bandwidth_hz is None else "samples"
    names = [""] * len(shape)
    if len(long) > 2:
        raise Unreadable(f"is an array {shape}; (pulses,) or (ranges, pulses) are needed, or names such as {EXAMPLE}")
    if len(long) == 2:
        rows, columns = shape[long[0]], shape[long[1]]
        if rows > columns:
            raise Unreadable(
                f"is an array {shape}: {rows} {fast} of only {columns} pulses? Say which is which: "
                f"--axes pulses,{fast} if there are {rows} pulses, --axes {fast},pulses if not"
            )
        names[long[0]] = fast
    names[long[-1] if long else -1] = "pulses"
    if len(long) < 2 and radar.bandwidth_hz is not None:
        raise Unreadable("bandwidth_hz was given, but there is one sample for each pulse; leave it out")
    return tuple(names)


def _joined(parts: tuple[str, str] | None) -> Any:
    """Return what makes complex numbers of pairs of named numbers."""
    if parts is None:
        return lambda values: values
    real, imaginary = parts
    return lambda values: values[real].astype(np.float64) + 1j * values[imaginary].astype(np.float64)


def _datasets(path: Path) -> dict[str, Any]:
    """Return path -> dataset of the arrays of an HDF5 file."""
    found: dict[str, Any] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape and not name.startswith("#refs#"):
            found[name] = item

    h5py.File(path, "r").visititems(take)
    return found


def chosen(arrays: Mapping[str, Any], variable: str | None) -> Any:
    """Return the array `variable`, or the only one that can be a recording: complex ones come first."""
    numeric = {name: value for name, value in arrays.items() if _numeric(value.dtype) and value.size > 1}
    if variable is not None:
        if variable.strip("/") not in numeric:
            raise Unreadable(f"has no array '{variable}'; it has {', '.join(sorted(numeric)) or 'none'}")
        return numeric[variable.strip("/")]
    likely = {name: value for name, value in numeric.items() if value.dtype.kind in "cV"} or numeric
    if len(likely) != 1:
        raise Unreadable(f"has the arrays {', '.join(sorted(likely)) or '(none)'}; name one with --variable")
    return next(iter(likely.values()))


def _numeric(dtype: np.dtype) -> bool:
    return dtype.kind in "iufc" or any(set(pair) <= set(dtype.names or ()) for pair in PARTS)


def require_small(path: Path) -> None:
    """Refuse a file of a format that is read whole, if it would fill the memory."""
    size = path.stat().st_size
    if size > READ_WHOLE:
        kind = re.sub(r"^\.", "", path.suffix)
        raise Unreadable(
            f"has {size / 1e9:.1f} GB, and .{kind} is read whole, up to {READ_WHOLE / 1e9:.1f} GB; "
            "save the array as .npy or HDF5, which are read in blocks"
        )
