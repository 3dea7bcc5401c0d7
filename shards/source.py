"""Reading an image folder: which files there are, their class, their metadata and their key."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
METADATA = "metadata.csv"
# Names of a split that came with the data -> ours.
GIVEN_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class SourceImage:
    """One image file of the folder.

    Attributes:
        path: relative to the folder, with forward slashes.
        class_name: the name of its class folder.
        key: unique in the folder, of the characters A-Z a-z 0-9 _ - alone.
        given_split: "train", "val" or "test" where the folder is laid out as root/<split>/<class>, None otherwise.
        metadata: its row of metadata.csv without `file`, as text.
    """

    path: str
    class_name: str
    key: str
    given_split: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceFolder:
    """What an image folder holds.

    Attributes:
        root: the folder.
        classes: class names in natural order.
        images: in natural order of their paths.
        rejected: path -> reason, for every other file that lies where an image is expected.
        listing: hash of the paths, sizes and times of all these files: changes whenever a file may have.
        notes: sentences for the report.
    """

    root: Path
    classes: list[str]
    images: list[SourceImage]
    rejected: dict[str, str]
    listing: str
    notes: list[str]


def natural_key(name: str) -> tuple:
    """Sort key under which ID_2 comes before ID_10; names that differ only in leading zeros or case keep an order."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def read_folder(root: Path) -> SourceFolder:
    """List an image folder `root/<class>/...` or `root/{train,val,test}/<class>/...`, with an optional metadata.csv.

    No image is opened. Files that are not images, hidden files and images outside a class folder come back as
    rejected.

    Raises:
        UserError: no such folder, no class folder, a class folder without an image, or a metadata.csv that does not
            fit.
    """
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder; give one that holds a folder of images per class")
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry.name)]
    given = "train" in folders and all(name in GIVEN_SPLITS for name in folders)
    depth = 2 if given else 1  # folders above an image, at least
    class_folders = _class_folders(root, folders, given)

    metadata = _read_metadata(root / METADATA)
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
        if reason := _reason_to_reject(parts, depth):
            rejected[_printable(path)] = reason
        else:
            found.append((path, parts))

    counts = Counter("/".join(parts[:depth]) for _, parts in found)
    for folder in class_folders:
        if not counts[folder]:
            raise UserError(f"class folder {root / folder} holds no image; put images there or remove the folder")
    found.sort(key=lambda item: natural_key(item[0]))
    keys = unique_keys([path for path, _ in found])
    images = [
        SourceImage(path, parts[depth - 1], key, GIVEN_SPLITS[parts[0]] if given else None, metadata.get(path, {}))
        for (path, parts), key in zip(found, keys, strict=True)
    ]
    notes = []
    if unused := len(metadata.keys() - {path for path, _ in found}):
        notes.append(f"{unused} rows of {METADATA} name no image that was found")
    if metadata and (without := sum(not image.metadata for image in images)):
        notes.append(f"{without} images have no row in {METADATA}")
    classes = sorted({image.class_name for image in images}, key=natural_key)
    return SourceFolder(root, classes, images, rejected, listing.hexdigest(), notes)


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
        for name in sorted(files):
            full = os.path.join(folder, name)
            try:
                status = os.stat(full)
            except OSError:  # a broken link: reading it will fail with the reason
                status = os.lstat(full)
            yield os.path.relpath(full, root).replace(os.sep, "/"), status


def _leads_back(folder: Path) -> bool:
    """Return whether a folder is a link to one of those that it lies in, and following it would never end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _class_folders(root: Path, folders: list[str], given: bool) -> list[str]:
    if given:
        names = [
            f"{split}/{entry.name}"
            for split in folders
            for entry in os.scandir(root / split)
            if entry.is_dir() and not _hidden(entry.name)
        ]
    else:
        names = folders
    if not names:
        raise UserError(f"data_dir {root} holds no class folder; lay the images out as {root}/<class>/<image>.png")
    for name in names:
        if name != _printable(name):
            raise UserError(f"class folder {root}/{_printable(name)} has a name that is not UTF-8; rename it")
    return sorted(names)


def _reason_to_reject(parts: tuple[str, ...], depth: int) -> str | None:
    if any(_hidden(part) for part in parts):
        return "hidden file"
    if Path(parts[-1]).suffix.lower() not in IMAGE_SUFFIXES:
        return "not a .png, .jpg or .jpeg file"
    if len(parts) <= depth:
        return "not in a class folder"
    if any(part != _printable(part) for part in parts):
        return "file name is not UTF-8"
    return None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


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


def _read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of metadata.csv by the path in their column `file`."""
    if not path.is_file():
        return {}
    rows: dict[str, dict[str, str]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "file" not in (reader.fieldnames or ()):
                raise UserError(f"{path} has no column 'file'; name each image there, relative to {path.parent}")
            for row in reader:
                name = (row.pop("file") or "").replace("\\", "/")
                if name in rows:
                    raise UserError(f"{path}, line {reader.line_num}: '{name}' is named twice; keep one row per image")
                rows[name] = {column: value for column, value in row.items() if column and value is not None}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV table in UTF-8 ({error}); save it as such or remove it") from None
    return rows
