"""Raw recordings: find the files of a folder, and read them into I/Q."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from mdaug.radar.sensor import SPEED_OF_LIGHT_M_S
from shards.errors import UserError
from shards.source import natural_key, unique_keys

SUFFIXES = (".dat", ".mat", ".npy")
HEADER_LINES = 4


class Unreadable(Exception):
    """A file that cannot be made into pictures; the text is the reason."""


@dataclass(frozen=True)
class Radar:
    """The radar as the user describes it; None leaves a number to the header of the file."""

    carrier_hz: float | None = None
    prf_hz: float | None = None
    bandwidth_hz: float | None = None
    """Swept by an FMCW radar during the samples of one sweep."""


@dataclass(frozen=True)
class Recording:
    """A recording of a coherent radar, with range resolved if it was."""

    samples: np.ndarray
    """complex64 (ranges, pulses); an approaching target turns counter-clockwise from pulse to pulse."""
    prf_hz: float
    """Pulses (sweeps) per second."""
    carrier_hz: float
    """Carrier frequency."""
    range_step_m: float | None
    """Distance from one row to the next, the first at 0 m; None where that is unknown."""

    @property
    def wavelength_m(self) -> float:
        """Wavelength in m."""
        return SPEED_OF_LIGHT_M_S / self.carrier_hz

    def between(self, near_m: float, far_m: float) -> np.ndarray:
        """Return the rows (K, pulses) from `near_m` to `far_m`; Unreadable where there is none."""
        if self.range_step_m is None:
            raise Unreadable(
                "range_m was given, but the ranges of the file are not known; give --bandwidth_hz, or leave it out"
            )
        first, last = int(np.ceil(near_m / self.range_step_m)), int(far_m / self.range_step_m)
        rows = self.samples[first : last + 1]
        if len(rows) == 0:
            reach = self.range_step_m * (len(self.samples) - 1)
            raise Unreadable(
                f"no range from {near_m:g} to {far_m:g} m: the file has every {self.range_step_m:.3g} m "
                f"up to {reach:.3g} m"
            )
        return rows


def read(path: Path, radar: Radar, variable: str | None = None) -> Recording:
    """Read a recording.

    Args:
        path: a file that ends in one of SUFFIXES.
        radar: numbers given by the user; they overrule the header of a file.
        variable: name of the array in a .mat file; None: the only one that can be a recording.

    Raises:
        Unreadable: not a recording, not finite, or a number of the radar is neither in the file nor given.
    """
    try:
        if path.suffix.lower() == ".dat":
            array, header = _text(path)
        else:
            array = _complex(_npy(path) if path.suffix.lower() == ".npy" else _mat(path, variable))
            header = Radar()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    if array.size == 0 or not np.isfinite(array).all():
        raise Unreadable("holds no samples" if array.size == 0 else "holds samples that are not finite")
    carrier, prf = radar.carrier_hz or header.carrier_hz, radar.prf_hz or header.prf_hz
    for name, value in (("carrier_hz", carrier), ("prf_hz", prf)):
        if value is None:
            raise Unreadable(f"has no header; give --{name}")
    assert carrier is not None
    assert prf is not None
    bandwidth = radar.bandwidth_hz or header.bandwidth_hz
    if bandwidth is None:
        return Recording(array, prf, carrier, None)
    if len(array) < 2:
        raise Unreadable("bandwidth_hz was given, but there is one sample for each pulse; leave it out")
    return Recording(_range_profiles(array), prf, carrier, SPEED_OF_LIGHT_M_S / (2 * bandwidth))


def _range_profiles(sweeps: np.ndarray) -> np.ndarray:
    """Return (n // 2, pulses), the beat frequencies of complex sweeps (n, pulses) that stand for distances from 0 on.

    A target at distance R beats with 2 R B / c cycles a sweep (B: bandwidth), so a bin is c / 2B wide.
    """
    return np.fft.fft(sweeps, axis=0)[: len(sweeps) // 2].astype(np.complex64)


def _text(path: Path) -> tuple[np.ndarray, Radar]:
    """Return complex64 (samples of a sweep, sweeps) and the header of an Ancortek text file.

    Line 1: carrier in Hz; 2: sweep time in ms; 3: samples of a sweep; 4: bandwidth in Hz; then one complex
    number a line, such as -0.0123+0.0456i. Sweeps follow one another; a last one that is not whole is left out.
    """
    numbers = path.read_bytes().replace(b"i", b"j").split()
    try:
        carrier, sweep_ms, per_sweep, bandwidth = (float(number) for number in numbers[:HEADER_LINES])
        samples = np.array(numbers[HEADER_LINES:]).astype(np.complex64)
    except ValueError:
        raise Unreadable("is not a text file of four numbers and then one complex number a line") from None
    if min(carrier, sweep_ms, per_sweep) <= 0:
        raise Unreadable(f"has a header of {carrier:g} Hz, {sweep_ms:g} ms, {per_sweep:g} samples; all must be above 0")
    if bandwidth <= 0:
        raise Unreadable(
            "has bandwidth 0 in its header (continuous wave or FSK); save it as a complex .npy array instead"
        )
    sweeps = samples[: len(samples) // int(per_sweep) * int(per_sweep)].reshape(-1, int(per_sweep)).T
    return sweeps, Radar(carrier, 1000 / sweep_ms, bandwidth)


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Unreadable(f"is not an .npy array: {error}") from None


def _mat(path: Path, variable: str | None) -> np.ndarray:
    """Return the array `variable` of a .mat file, or its only array that can be a recording."""
    with open(path, "rb") as file:
        try:
            content = loadmat(file)
        except NotImplementedError:
            raise Unreadable("is a MATLAB 7.3 file; save it again with: save('file.mat', 'name', '-v7')") from None
        except Exception as error:  # what loadmat raises for damaged files is not documented
            raise Unreadable(f"is not a MATLAB file: {error}") from None
    arrays = {
        name: value
        for name, value in content.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "iufc" and value.size > 1
    }
    if variable is not None:
        if variable not in arrays:
            raise Unreadable(f"has no array '{variable}'; it has {', '.join(sorted(arrays)) or 'none'}")
        return arrays[variable]
    likely = {name: value for name, value in arrays.items() if np.iscomplexobj(value)} or arrays
    if len(likely) != 1:
        raise Unreadable(f"has the arrays {', '.join(sorted(likely)) or '(none)'}; name one with --variable")
    return next(iter(likely.values()))


def _complex(array: np.ndarray) -> np.ndarray:
    """Return complex64 (rows, pulses) of a complex array, or of a real one with two columns, real and imaginary."""
    if not np.iscomplexobj(array):
        if array.ndim != 2 or array.shape[1] != 2:
            raise Unreadable(
                f"is an array {array.shape} of {array.dtype}; complex numbers, or (n, 2) real ones, are needed"
            )
        array = array[:, 0] + 1j * array[:, 1]
    if 1 in array.shape:
        array = array.ravel()
    if array.ndim > 2:
        raise Unreadable(f"is an array {array.shape}; (pulses,) or (ranges, pulses) are needed")
    return np.atleast_2d(array).astype(np.complex64)


# doi:10.5525/gla.researchdata.848 names its files KPxxAyyRz: activity K, person xx, activity once more, repetition z.
GLASGOW_NAME = re.compile(r"[\s_]*(\d)[\s_]*P(\d+)[\s_]*A(\d+)[\s_]*R(\d+)", re.IGNORECASE)
GLASGOW_CLASSES = {1: "walking", 2: "sitting_down", 3: "standing_up", 4: "picking_up", 5: "drinking", 6: "fall"}


@dataclass(frozen=True)
class Source:
    """One recording of the folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    class_name: str
    """What is seen in it."""
    group: str
    """Pictures of one group must not be torn between training and validation."""
    key: str = ""
    """Unique among the recordings, of plain characters."""
    columns: dict[str, int] = field(default_factory=dict)
    """Further numbers in the name, for metadata.csv."""


def find(root: Path, *, glasgow: bool, class_pattern: str | None) -> tuple[list[Source], dict[str, str]]:
    """Return the recordings below a folder in natural order, and path -> reason for every other file.

    Args:
        root: the folder; hidden files in it are passed over.
        glasgow: file names are those of the Glasgow set and name the class; a group is one person of one campaign (the
            first folder), since persons are numbered anew in each.
        class_pattern: regular expression with one group, which finds the class in the path; None: the first folder.

    Raises:
        UserError: no such folder, or it holds no recording.
    """
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder; give one that holds a folder of recordings per class")
    sources: list[Source] = []
    rejected: dict[str, str] = {}
    taken: dict[tuple, str] = {}
    for path in sorted((path.relative_to(root) for path in root.rglob("*") if path.is_file()), key=_copies_last):
        name = path.as_posix()
        if any(part.startswith(".") for part in path.parts):
            continue
        if path.suffix.lower() not in SUFFIXES:
            rejected[name] = f"not a {', '.join(SUFFIXES)} file"
            continue
        source = _glasgow(path) if glasgow else _generic(path, class_pattern)
        if isinstance(source, str):
            rejected[name] = source
        elif glasgow and (twin := taken.setdefault((source.group, *source.columns.values()), name)) != name:
            rejected[name] = f"the same person, activity and repetition as {twin}"
        else:
            sources.append(source)
    if not sources:
        example = f" (such as {next(iter(rejected))}: {next(iter(rejected.values()))})" if rejected else ""
        raise UserError(f"data_dir {root} holds no recording{example}; lay them out as {root}/<class>/<recording>.npy")
    sources.sort(key=lambda source: natural_key(source.path))
    keys = unique_keys([source.path for source in sources])
    named = [Source(s.path, s.class_name, s.group, key, s.columns) for s, key in zip(sources, keys, strict=True)]
    return named, rejected


def _copies_last(path: Path) -> tuple:
    """Sort key: of a file and its copies ("... - Copy", "... (2)") the shortest name comes first."""
    return natural_key(path.parent.as_posix()), len(path.name), natural_key(path.name)


def _generic(path: Path, class_pattern: str | None) -> Source | str:
    """Return the recording, or why the file is rejected."""
    if class_pattern is None:
        if len(path.parts) < 2:
            return "not in a class folder"
        return Source(path.as_posix(), path.parts[0], path.as_posix())
    found = re.search(class_pattern, path.as_posix())
    if found is None or not found[1]:
        return f"class_pattern '{class_pattern}' finds no class in its path"
    if "/" in found[1] or found[1].startswith("."):
        return f"class_pattern '{class_pattern}' finds the class '{found[1]}', which cannot be a folder"
    return Source(path.as_posix(), found[1], path.as_posix())


def _glasgow(path: Path) -> Source | str:
    """Return the recording, or why the file is rejected."""
    found = GLASGOW_NAME.match(path.name)
    if found is None:
        return "its name is not like 1P36A01R01.dat"
    activity, person, _, repetition = map(int, found.groups())
    if activity not in GLASGOW_CLASSES:
        return f"its name says activity {activity}; 1 to {len(GLASGOW_CLASSES)} are known"
    campaign = path.parts[0] if len(path.parts) > 1 else "campaign"
    columns = {"activity": activity, "person": person, "repetition": repetition}
    return Source(path.as_posix(), GLASGOW_CLASSES[activity], f"{campaign}/P{person:02d}", columns=columns)
