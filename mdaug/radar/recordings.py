"""Raw recordings: which files of a folder there are, and which reader takes each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mdaug.radar import readers_arrays, readers_streams, readers_ti
from mdaug.radar.recording import Radar, Recording, Unreadable, checked
from shards.errors import UserError
from shards.source import natural_key, unique_keys

READERS: dict[str, Callable[[Path, Radar], Recording]] = {
    ".dat": readers_streams.read_ancortek,
    ".mat": readers_arrays.read_mat,
    ".npy": readers_arrays.read_npy,
    ".npz": readers_arrays.read_npz,
    ".h5": readers_arrays.read_hdf5,
    ".hdf5": readers_arrays.read_hdf5,
    ".bin": readers_ti.read,
    ".wav": readers_streams.read_wav,
    ".sigmf-meta": readers_streams.read_sigmf,
}


def read(path: Path, radar: Radar) -> Recording:
    """Open a recording by the reader of its name's ending, and require what makes velocities of it.

    Args:
        path: a file that ends in one of READERS.
        radar: what the user says; it overrules the header of a file.

    Raises:
        Unreadable: no such recording, or something about the radar is neither in the file nor given.
    """
    return checked(look(path, radar))


def look(path: Path, radar: Radar) -> Recording:
    """Open a recording as `read` does, although its carrier or its rate may be unknown."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise Unreadable(f"is not a {', '.join(READERS)} file")
    try:
        return reader(path, radar)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None


def files_of(path: Path) -> list[Path]:
    """Return the files of a recording: itself, and what its reader takes along."""
    samples = path.with_suffix(".sigmf-data") if path.suffix.lower() == ".sigmf-meta" else None
    along = readers_ti.companion(path) if path.suffix.lower() == ".bin" else samples
    return [path, along] if along is not None and along.is_file() else [path]


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

    What a reader takes along with a recording (.sigmf-data, the JSON of a .bin) is part of it, not a file of its own.

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
    files = [path for path in root.rglob("*") if path.is_file()]
    along = {other for path in files if path.suffix.lower() in READERS for other in files_of(path)[1:]}
    for path in sorted((path.relative_to(root) for path in files if path not in along), key=_copies_last):
        name = path.as_posix()
        if any(part.startswith(".") for part in path.parts):
            continue
        if path.suffix.lower() not in READERS:
            rejected[name] = f"not a {', '.join(READERS)} file"
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
