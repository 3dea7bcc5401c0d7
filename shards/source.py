"""Reading an image folder: which files there are, their class, their metadata and their key."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
import stat
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import UserError
from shards.output_folder import read_run

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
METADATA = "metadata.csv"
# Names of a split that came with the data, in lower case -> ours.
GIVEN_SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout", "held_out"), "test"),
}
# Folders and files that operating systems and network drives leave between the user's own.
JUNK = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
JUNK_FILES = {"thumbs.db", "desktop.ini", "icon\r"}
LONGEST_NAME = 200  # bytes of a class name: files are named after classes, and file systems take 255
# Columns of metadata.csv that are physical quantities wherever they appear, and their unit.
QUANTITIES = {"v_max_m_s": "m/s", "duration_s": "s", "carrier_hz": "Hz", "prf_hz": "Hz", "hop_s": "s", "window_s": "s"}


@dataclass(frozen=True)
class SourceImage:
    """One image file of the folder.

    Attributes:
        path: relative to the folder, with forward slashes.
        class_name: the name of its class folder.
        key: unique in the folder, of the characters A-Z a-z 0-9 _ - alone.
        given_split: "train", "val" or "test" where the folder is laid out as root/<split>/<class>, None otherwise.
        metadata: its row of metadata.csv without `file`: numbers where all of a column are, else text.
    """

    path: str
    class_name: str
    key: str
    given_split: str | None = None
    metadata: dict[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceFolder:
    """What an image folder holds.

    Attributes:
        root: the folder.
        classes: class names in natural order.
        images: in natural order of their paths.
        rejected: path -> reason, for every other file that lies where an image is expected.
        listing: hash of the paths, sizes and times of all these files: changes whenever a file may have.
        layout: one sentence that says which folders were taken for splits and which for classes.
        columns: column of metadata.csv -> "int", "float" or "text".
        notes: sentences for the report.
    """

    root: Path
    classes: list[str]
    images: list[SourceImage]
    rejected: dict[str, str]
    listing: str
    layout: str
    columns: dict[str, str]
    notes: list[str]


def natural_key(name: str) -> tuple:
    """Sort key under which ID_2 comes before ID_10; names that differ only in leading zeros or case keep an order."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def read_folder(root: Path, class_depth: int | None = None) -> SourceFolder:
    """List an image folder `root/<class>/...` or `root/{train,val,test}/<class>/...`, with an optional metadata.csv.

    No image is opened. Files that are not images, hidden files, junk of operating systems and images outside a class
    folder come back as rejected.

    Args:
        root: the folder.
        class_depth: folders from `root` down to the class folders, itself counted; by default 1, or 2 below folders
            that have the names of splits.

    Raises:
        UserError: no such folder, no class folder, a class folder without an image, two readings of the folders, or a
            metadata.csv that does not fit.
    """
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder; give one that holds a folder of images per class")
    _refuse_own_output(root)
    found, rejected, listing = _list_files(root)
    folders = sorted({parts[0] for _, parts in found if len(parts) > 1} | set(_folders(root)))
    splits = {name: GIVEN_SPLITS[name.casefold()] for name in folders if name.casefold() in GIVEN_SPLITS}
    depth = class_depth or _depth(root, folders, splits, [parts for _, parts in found])
    given = depth > 1 and len(splits) == len(folders) and "train" in splits.values()

    # Images in class folders; the rest is said with its reason.
    inside = []
    for path, parts in found:
        if len(parts) <= depth:
            rejected[path] = "not in a class folder"
        else:
            inside.append((path, parts))
    found = sorted(inside, key=lambda item: natural_key(item[0]))
    _check_class_folders(root, depth, Counter("/".join(parts[:depth]) for _, parts in found))

    rows, columns, notes = _read_metadata(root / METADATA, [path for path, _ in found])
    keys = unique_keys([path for path, _ in found])
    images = [
        SourceImage(path, parts[depth - 1], key, splits[parts[0]] if given else None, rows.get(path, {}))
        for (path, parts), key in zip(found, keys, strict=True)
    ]
    classes = sorted({image.class_name for image in images}, key=natural_key)
    deeper = [path for path, parts in found if len(parts) > depth + 1]
    if deeper:
        notes.append(f"{len(deeper)} images lie in folders inside class folders, such as {deeper[0]}")
    layout = _layout(splits if given else {}, classes, depth)
    return SourceFolder(root, classes, images, rejected, listing, layout, columns, notes)


def _refuse_own_output(root: Path) -> None:
    """Refuse a folder that mdaug packed, encoded or generated: its pictures are not in class folders."""
    run = read_run(root)
    if run is None or run["command"] in ("simulate", "spectrogram"):
        return
    images = root / "images"
    remedy = f"give {images}" if images.is_dir() else "give the folder of the images themselves"
    raise UserError(f"data_dir {root} is the output of mdaug {run['command']}, not an image folder; {remedy}")


def _list_files(root: Path) -> tuple[list[tuple[str, tuple[str, ...]]], dict[str, str], str]:
    """Return [(path, its parts)] of the image files, path -> reason of the others, and the hash of the listing."""
    listing = hashlib.sha256()
    found: list[tuple[str, tuple[str, ...]]] = []
    rejected: dict[str, str] = {}
    for path, status in _walk(root):
        parts = tuple(path.split("/"))
        if len(parts) == 1 and Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            if path == METADATA:
                listing.update(repr((path, status.st_size, status.st_mtime_ns)).encode())
            continue  # notes, licences and tables beside the class folders
        listing.update(repr((path, status.st_size, status.st_mtime_ns)).encode())
        if reason := _reason_to_reject(parts, status):
            rejected[_printable(path)] = reason
        else:
            found.append((path, parts))
    return found, rejected, listing.hexdigest()


def _folders(root: Path) -> list[str]:
    """Return the names of the folders in a folder that are neither hidden nor junk."""
    return [entry.name for entry in os.scandir(root) if entry.is_dir() and not _ignored(entry.name)]


def _depth(root: Path, folders: list[str], splits: dict[str, str], images: list[tuple[str, ...]]) -> int:
    """Return how deep the class folders lie: 2 below splits, else 1; UserError where the folders can be read as both.

    Two readings there are where some folders have the names of splits and others have not, where several folders hold
    folders of the same names, and where no image lies directly in any of them.
    """
    if folders and len(splits) == len(folders) and "train" in splits.values():
        return 2
    inside: dict[str, set[str]] = {name: set() for name in folders}
    for parts in images:
        if len(parts) > 2:
            inside[parts[0]].add(parts[1])
    seen = Counter(name for names in inside.values() for name in names)
    shared = sorted(name for name, count in seen.items() if count > 1)
    direct = any(len(parts) == 2 for parts in images)
    if not seen or not (splits or shared or not direct):
        return 1
    below = sorted(seen, key=natural_key)
    raise UserError(
        f"data_dir {root} can be read in two ways: classes {_some(folders)} (pack with --class_depth 1), or classes "
        f"{_some(below)} inside of {_some(folders)} (--class_depth 2); say which"
    )


def _check_class_folders(root: Path, depth: int, counts: Counter[str]) -> None:
    """Refuse a root without class folders, and class folders without an image or with a name that cannot be used."""
    level = [""]
    for _ in range(depth):
        level = [f"{above}{name}/" for above in level for name in _folders(root / above)]
    names = sorted(name.rstrip("/") for name in level)
    if not names:
        raise UserError(f"data_dir {root} holds no class folder; lay the images out as {root}/<class>/<image>.png")
    for name in names:
        if name != _printable(name):
            raise UserError(f"class folder {root}/{_printable(name)} has a name that is not UTF-8; rename it")
        own = name.rpartition("/")[2]
        if len(own.encode()) > LONGEST_NAME or not own.isprintable():
            raise UserError(
                f"class folder {root / name}: files are named after classes, so a name holds printable characters and "
                f"at most {LONGEST_NAME} bytes; rename it"
            )
        if not counts[name]:
            raise UserError(f"class folder {root / name} holds no image; put images there or remove the folder")


def _layout(splits: dict[str, str], classes: list[str], depth: int) -> str:
    """Return the sentence that says how the folders were read."""
    where = f"{len(classes)} classes from folders" + ("" if depth == 1 else f" at depth {depth}")
    named = ", ".join(f"{name} ({ours})" if name != ours else name for name, ours in splits.items())
    return f"{where}; splits {named}" if named else f"{where}; no folder is a split"


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def plain_value(text: str) -> str | int | float:
    """Return a cell of a table as int or float where its text is just that number, else as text ("007" stays text)."""
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?", text, re.ASCII):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


def _walk(root: Path):
    """Yield (path relative to root, stat) of every file, in an order that does not depend on the file system."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not _leads_back(Path(folder, name)))
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        above = "" if inside == "." else f"{inside}/"
        for name in sorted(files):
            full = os.path.join(folder, name)
            try:
                status = os.stat(full)
            except OSError:  # a broken link: reading it will fail with the reason
                status = os.lstat(full)
            yield above + name, status


def _leads_back(folder: Path) -> bool:
    """Return whether a folder is a link to one of those that it lies in, and following it would never end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _reason_to_reject(parts: tuple[str, ...], status: os.stat_result) -> str | None:
    if any(part.casefold() in JUNK for part in parts) or parts[-1].casefold() in JUNK_FILES:
        return "junk of an operating system or network drive"
    if any(_ignored(part) for part in parts):
        return "hidden file"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if os.path.splitext(parts[-1])[1].lower() not in IMAGE_SUFFIXES:
        return f"not a {', '.join(IMAGE_SUFFIXES[:-1])} or {IMAGE_SUFFIXES[-1]} file"
    if any(part != _printable(part) for part in parts):
        return "file name is not UTF-8"
    return None


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.casefold() in JUNK


def _printable(text: str) -> str:
    """Return a file name with the bytes that are not UTF-8 written as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unique_keys(paths: list[str]) -> list[str]:
    """Return one key per path: the path without suffix in plain letters, and a hash of the path where two would meet.

    The key of a path does not depend on the order of the paths. Keys that differ in case alone meet too, for the sake
    of file systems that cannot tell them apart.
    """
    plain = [_plain_key(path) for path in paths]
    uses = Counter(key.casefold() for key in plain)
    return [
        key if uses[key.casefold()] == 1 else f"{key[:60]}_{hashlib.sha256(path.encode()).hexdigest()[:16]}"
        for key, path in zip(plain, paths, strict=True)
    ]


def _plain_key(path: str) -> str:
    ascii_path = unicodedata.normalize("NFKD", os.path.splitext(path)[0]).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_path)[-80:]


def _read_metadata(
    path: Path, images: list[str]
) -> tuple[dict[str, dict[str, str | int | float]], dict[str, str], list[str]]:
    """Return image -> its row of metadata.csv, column -> type, and sentences for the report.

    Names are compared after Unicode normalisation (NFC): macOS writes file names decomposed, tables hold them composed.
    """
    if not path.is_file():
        return {}, {}, []
    table: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}  # normalised -> as in the table
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "file" not in (reader.fieldnames or ()):
                raise UserError(f"{path} has no column 'file'; name each image there, relative to {path.parent}")
            for row in reader:
                name = (row.pop("file") or "").replace("\\", "/")
                if _composed(name) in names:
                    raise UserError(f"{path}, line {reader.line_num}: '{name}' is named twice; keep one row per image")
                names[_composed(name)] = name
                table[_composed(name)] = {c: value for c, value in row.items() if c and value is not None}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV table in UTF-8 ({error}); save it as such or remove it") from None

    # One type per column, over the rows of the images that are there.
    named = {image: table[_composed(image)] for image in images if _composed(image) in table}
    columns = _column_types(path, named)
    rows = {
        image: {c: _as_type(value, columns[c]) for c, value in row.items() if value} for image, row in named.items()
    }
    # Rows and images that do not meet.
    notes = []
    there = {_composed(image) for image in images}
    if unused := [name for key, name in names.items() if key not in there]:
        cause = _likely_cause(unused[0], there)
        notes.append(f"{len(unused)} rows of {METADATA} name no image that was found, such as '{unused[0]}'{cause}")
    if without := [image for image in images if image not in named]:
        notes.append(f"{len(without)} images have no row in {METADATA}, such as '{without[0]}'")
    return rows, columns, notes


def _column_types(path: Path, rows: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return column -> "int", "float" or "text": what all of its cells are, so that every reader finds one type.

    Raises UserError for a cell of a physical quantity that is not a number above 0.
    """
    cells: dict[str, list[str]] = {}
    for image, row in rows.items():
        for column, value in row.items():
            cells.setdefault(column, [])
            if not value:
                continue
            cells[column].append(value)
            number = plain_value(value)
            if column in QUANTITIES and (isinstance(number, str) or number <= 0):
                raise UserError(
                    f"{path}: {column} of '{image}' is '{value}'; write a number above 0 in {QUANTITIES[column]}, "
                    "without the unit, or leave the cell empty"
                )
    kinds = {column: {type(plain_value(value)) for value in values} for column, values in cells.items()}
    return {
        column: "text" if str in types or not types else "float" if float in types else "int"
        for column, types in kinds.items()
    }


def _as_type(value: str, kind: str) -> str | int | float:
    return {"text": str, "int": int, "float": float}[kind](value)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _likely_cause(name: str, there: set[str]) -> str:
    """Return what may be behind a name of the table that is not there, as the rest of a sentence."""
    if _composed(name).casefold() in {other.casefold() for other in there}:
        return ": its case differs from the file's"
    if any(other.rpartition("/")[2] == _composed(name).rpartition("/")[2] for other in there):
        return ": there is a file of that name in another folder; write the path from the image folder on"
    return ""
