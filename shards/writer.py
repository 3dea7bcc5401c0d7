"""The one writer of shards: plain WebDataset tars, written atomically, the same bytes for the same samples.

A shard is `000000.tar` plus its sidecar `000000.json`. The sidecar is written last: a shard without
its sidecar does not exist, whatever happened to the process that wrote it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shards import atomic
from shards.errors import UserError

# A dot in a key would end it for WebDataset readers; with 80 characters a member name fits the 100 bytes of ustar.
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
EXTENSION = re.compile(r"[a-z0-9]{1,16}")
BLOCK = tarfile.BLOCKSIZE
# The header of a member without name and content: mtime, uid, gid 0 and mode 0644, so that the bytes are the data's.
HEADER = tarfile.TarInfo("").tobuf(format=tarfile.USTAR_FORMAT)
HEADER_SUM = sum(HEADER[:124]) + sum(HEADER[136:148]) + 8 * ord(" ") + sum(HEADER[156:])  # checksum and size left out
FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)}  # safetensors' errors have the text alone
CUT_WRITES = {  # errors that do not name the reason: words in them -> what could not be written
    "inline_container.cc": "torch could not write all of its file",
    " requested and ": "numpy could not write all of an array",  # "4096 requested and 512 written"
}


def write_shard(
    path: Path,
    samples: Iterable[tuple[str, dict[str, bytes]]],
    statistics: Callable[[], dict] | None = None,
) -> dict:
    """Write one shard and return its sidecar.

    Args:
        path: the tar to write, such as `train/000000.tar`; an existing shard is replaced.
        samples: (key, {extension: bytes}); every sample has the same extensions, `cls` (the ascii label index) among
            them.
        statistics: called after the last sample; what it returns is stored in the sidecar.

    Returns:
        {"file", "count", "bytes", "sha256", "keys", "labels", "members": {extension: [[offset, size], ...]},
        "statistics"}, where offset and size are those of the member's content in the tar, in bytes.

    Raises:
        UserError: a bad or repeated key, or no space left; nothing of the shard is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.remove_debris(path.parent, f"{path.stem}.*")
    sidecar = path.with_suffix(".json")
    with disk_full_as_user_error(path):
        with atomic.replacing(path) as file:
            record = {"file": path.name, **_write_members(_Hashing(file), samples, path)}
            record["statistics"] = statistics() if statistics else {}
            # A sidecar must not describe another tar. That of the same bytes stays: a second writer of a shard would
            # hide it from others for a moment.
            if (_read_sidecar(path) or {}).get("sha256") != record["sha256"]:
                sidecar.unlink(missing_ok=True)
        _sync_folder(path.parent)
        atomic.write_text(sidecar, json.dumps(record) + "\n")
    return record


def finished(path: Path) -> dict | None:
    """Return the sidecar of a finished shard, or None where it is not finished (no sidecar, or a cut tar)."""
    record = _read_sidecar(path)
    return record if record and path.is_file() and path.stat().st_size == record["bytes"] else None


def _read_sidecar(path: Path) -> dict | None:
    """Return the sidecar of a tar, or None where it is missing or unreadable, such as one that a bad disk cut."""
    try:
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


@contextlib.contextmanager
def disk_full_as_user_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into a UserError that names the file, or `path` where it is unknown."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        text = f"{error} {error.args}"  # an OSError that was given a file name shows nothing else
        reason = next((full for code, full in FULL.items() if code == number or full in text), None)
        if number is None:
            reason = reason or next((cut for words, cut in CUT_WRITES.items() if words in text), None)
        if reason is None:
            raise
        raise UserError(
            f"no space left while writing {getattr(error, 'filename', None) or path} ({reason}); free some or choose "
            "another folder, then run the same command again: what is finished is kept"
        ) from None


def require_writable(output_dir: Path) -> None:
    """Raise UserError where a folder cannot be made or written; leaves nothing behind."""
    if reason := why_not_writable(output_dir):
        raise UserError(f"output_dir={output_dir} cannot be written ({reason}); choose another --output_dir")


def why_not_writable(folder: Path) -> str | None:
    """Return why a folder cannot be made or written, as "PATH: reason", or None where it can; leaves nothing behind."""
    nearest = folder
    try:
        while not nearest.exists():
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return f"{nearest}: {error.strerror}"


class _Hashing:
    """A file that knows its position and the sha256 of all that was written."""

    def __init__(self, file):
        self.file = file
        self.digest = hashlib.sha256()
        self.position = 0

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.position += len(data)


def _write_members(file: _Hashing, samples: Iterable[tuple[str, dict[str, bytes]]], path: Path) -> dict:
    keys: dict[str, int] = {}
    members: dict[str, list[list[int]]] = {}
    for key, fields in samples:
        if not KEY.fullmatch(key):
            raise UserError(f"{path}: key '{key}' is not 1 to 80 of the characters A-Z a-z 0-9 _ -; rename the sample")
        if key in keys:
            raise UserError(f"{path}: two samples have the key '{key}'; give each its own")
        if not keys:
            members = {extension: [] for extension in fields}
        if fields.keys() != members.keys() or "cls" not in fields:
            raise ValueError(f"{path}: sample '{key}' has {sorted(fields)}, the shard has {sorted(members)} (with cls)")
        keys[key] = int(fields["cls"])
        for extension, data in fields.items():
            if not EXTENSION.fullmatch(extension):
                raise ValueError(f"{path}: extension '{extension}' is not lower-case letters and digits")
            members[extension].append([file.position + BLOCK, len(data)])
            file.write(b"".join((tar_header(f"{key}.{extension}", len(data)), data, bytes(-len(data) % BLOCK))))
    if not keys:
        raise ValueError(f"{path}: a shard needs at least one sample")
    file.write(bytes(2 * BLOCK))
    return {
        "count": len(keys),
        "bytes": file.position,
        "sha256": file.digest.hexdigest(),
        "keys": list(keys),
        "labels": list(keys.values()),
        "members": members,
    }


def tar_header(name: str, size: int) -> bytes:
    """Return the header of a member of `size` bytes, as `tarfile` writes it for ustar, in a tenth of the time."""
    octal = b"%011o\0" % size
    plain = name.encode("ascii")
    checksum = HEADER_SUM + sum(plain) + sum(octal)
    return b"".join(
        (plain.ljust(100, b"\0"), HEADER[100:124], octal, HEADER[136:148], b"%06o\0 " % checksum, HEADER[156:])
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename durable before the sidecar that vouches for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
