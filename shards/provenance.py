"""Which step made a folder, from what, and which files it promises: `provenance.json`, and the refusal of folders that
lack one of these files or do not fit together."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from shards import atomic
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import read_index, shards_there, sidecar_bytes
from shards.writer import finished

FILE_NAME = "provenance.json"
RUN_FILE, PROGRESS_FILE, LOGS = "run.json", "progress.json", "logs"
VERSION_FILE = "CODE_VERSION"  # beside the packages, in a copy of them outside of a checkout
NO_SHARD = "is missing, cut or without sidecar"
OTHER_SIDECAR = "has a sidecar that is damaged or of another tar"
READ_WHOLE = ("images", "latents", "vqvae", "pipeline")  # kinds; others hold files for people beside their shards


class Lost(NamedTuple):
    """A file that a finished folder promises and does not hold."""

    name: str
    """Path in the folder."""
    why: str
    """Such as "is missing"."""


def hash_files(paths: Iterable[Path]) -> str:
    """Return the sha256 over the names and bytes of files, taken in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0")
        _digest_file(digest, path)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the sha256 of the bytes of a file."""
    digest = hashlib.sha256()
    _digest_file(digest, path)
    return digest.hexdigest()


def _digest_file(digest: Any, path: Path) -> None:
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def write(
    folder: Path,
    *,
    kind: str,
    content_hash: str,
    made_from: dict[str, str],
    config: dict,
    note: str = "",
    unhashed: Collection[str] = (),
) -> None:
    """Write `provenance.json` into `folder`, as the last file of the step that made it.

    Args:
        folder: the folder that the step has made.
        kind: what it holds: "images", "latents", "vqvae", "pipeline", "synthetic", "mixed" or "evaluation".
        content_hash: sha256 of what it holds; a later step repeats it in its own `made_from`.
        made_from: role -> content hash of every folder it was made from, such as {"images": ..., "vqvae": ...}.
        config: the resolved configuration of the step, as plain JSON values.
        note: a remark on how the step ended, such as why a training stopped early.
        unhashed: sub-folders of files too large to be read once more, of which only the sizes are promised.

    The size and sha256 of every file in the folder are recorded, and the size of the sidecars of each folder of shards
    together, see `lost`.
    """
    record = {
        "kind": kind,
        "hash": content_hash,
        "made_from": made_from,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": code_version(),
        "config": config,
        **({"note": note} if note else {}),
        "files": (files := dict(_promises(folder, unhashed))),
        "sidecars": {name: _sidecar_bytes(folder / name) for name in files if Path(name).name == INDEX},
    }
    atomic.write_text(folder / FILE_NAME, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _promises(folder: Path, unhashed: Collection[str]) -> Iterator[tuple[str, list]]:
    """Yield (path in the folder, [bytes, sha256 or None]) of its files, in order.

    Left out are shards and their sidecars, which index.json vouches for; hidden files, logs and the records of the run;
    and folders in it that belong to another run.
    """
    for place, folders, names in os.walk(folder):
        top = Path(place) == folder
        inner = sorted(name for name in folders if name[0] != "." and not (top and name == LOGS))
        folders[:] = [name for name in inner if not (Path(place) / name / RUN_FILE).is_file()]
        shards = {Path(name).stem for name in names if name.endswith(".tar")} if INDEX in names else set()
        for name in sorted(names):
            path = Path(place) / name
            is_record = top and name in (RUN_FILE, PROGRESS_FILE, FILE_NAME)
            if name[0] == "." or is_record or (path.stem in shards and path.suffix in (".tar", ".json")):
                continue
            relative = path.relative_to(folder)
            sha256 = None if relative.parts[0] in unhashed else sha256_of(path)
            yield relative.as_posix(), [path.stat().st_size, sha256]


def lost(folder: Path, *, shards: bool = True) -> list[Lost]:
    """Return which files of a finished folder are missing or cut, by what provenance.json and index.json promise.

    Names and sizes alone are looked at, after `compare_hashes` hashes as well; a file that has grown since was changed
    by a person, such as a card. Sidecars are read where they are not as long together as they were, and in folders of
    earlier versions. A folder that is not finished promises nothing. Without `shards` the shards are left to
    `ShardDataset`.
    """
    found, record = [], load(folder) or {}
    hashed = not _hashed.isdisjoint((folder.resolve(), *folder.resolve().parents))
    for name, (size, sha256) in (record.get("files") or {}).items():
        path = folder / name
        if why := _fault(path, size, sha256 if hashed else None):
            found.append(Lost(name, why))
        elif shards and path.name == INDEX:
            read = hashed or (record.get("sidecars") or {}).get(name) != _sidecar_bytes(path)
            for entry, status in shards_there(path.parent, read_index(path.parent)):
                tar, size, sha256 = path.parent / entry["url"], entry["filesize"], entry["sha256"]
                why = "" if status is not None else NO_SHARD
                if read and not why:
                    same = (finished(tar) or {}).get("sha256") == sha256
                    why = _fault(tar, size, sha256 if hashed else None) if same else OTHER_SIDECAR
                if why:
                    found.append(Lost(tar.relative_to(folder).as_posix(), why))
    return found


def _sidecar_bytes(index: Path) -> int:
    return sidecar_bytes(index.parent, read_index(index.parent))


_hashed: set[Path] = set()  # folders whose files are compared by hash in this process


def compare_hashes(folder: Path) -> None:
    """Let `lost` find files of a folder, and of folders in it, that have their size and other bytes."""
    _hashed.add(folder.resolve())


@functools.cache
def _sha256_at(path: Path, _changed_at: int) -> str:
    return sha256_of(path)


def is_whole(folder: Path) -> bool:
    """Return whether a folder is finished and holds all that it promises."""
    return load(folder) is not None and not lost(folder)


def _fault(path: Path, size: int, sha256: str | None = None) -> str:
    """Return what is wrong with a file that had a number of bytes, and a hash where it is to be compared, or ""."""
    if not path.is_file():
        return "is missing"
    status = path.stat()
    if status.st_size == size and sha256 not in (None, _sha256_at(path.resolve(), status.st_mtime_ns)):
        return "was changed since it was written (sha256)"
    return f"is cut ({status.st_size} of {size} bytes)" if status.st_size < size else ""


def load(folder: Path) -> dict | None:
    """Return the provenance of a finished folder; None where there is none, or it is damaged."""
    try:
        record = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        return record if {"kind", "hash", "made_from", "config"} <= record.keys() else None
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return None


def read(folder: Path, *kinds: str) -> dict:
    """Return the provenance of `folder`.

    Raises:
        UserError: it is not a finished folder of one of the kinds, or files that the next command reads are missing or
            cut; the shards are looked at when they are opened.
    """
    path, kind = folder / FILE_NAME, "' or '".join(kinds)
    record = load(folder)
    if record is None:
        why = f"{FILE_NAME} is cut or damaged" if path.is_file() else f"no {FILE_NAME}"
        raise UserError(f"{folder} is not a finished '{kind}' folder: {why}; run the command that makes it (again)")
    if record["kind"] not in kinds:
        raise UserError(f"{folder} holds '{record['kind']}', but '{kind}' is needed here; name a folder of that")
    if record["kind"] in READ_WHOLE:
        require_whole(folder)
    return record


def require_whole(folder: Path, inside: str = "", otherwise: str = "") -> None:
    """Raise UserError where a file of a finished folder, or of a sub-folder `inside` of it, is missing or cut.

    `otherwise` is what else may be done, for the message.
    """
    for name, why in lost(folder, shards=False):
        if name.startswith(inside):
            raise UserError(
                f"{folder / name} {why}; run the same {_maker(folder)} command again: it makes what is missing, or "
                f"says why it cannot{otherwise}"
            )


def _maker(folder: Path) -> str:
    """Return the command that made a folder, as far as that shows."""
    if "ema_reconstructed" in (load(folder) or {}).get("config", {}):
        return "mdaug ema"
    for place in (folder, folder.parent):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return f"mdaug {json.loads((place / RUN_FILE).read_text(encoding='utf-8'))['command']}"
    return "mdaug"


def require_same(role: str, first: Path, first_hash: str, second: Path, second_hash: str) -> None:
    """Refuse two folders that were made from different things in the same role.

    Raises UserError naming both folders and both hashes.
    """
    if first_hash != second_hash:
        raise UserError(
            f"{first} and {second} do not belong together: their {role} differ "
            f"({first_hash[:12]} against {second_hash[:12]}); make one of them again from the other's {role}"
        )


@functools.cache
def code_version() -> str:
    """Return the version of mdaug, with the git commit in a checkout, or in a copy of one that records it."""
    root = Path(__file__).parents[1]
    if (root / VERSION_FILE).is_file():
        return (root / VERSION_FILE).read_text(encoding="utf-8").strip()
    try:
        release = version("mdaug")
    except PackageNotFoundError:
        release = "unknown"
    if shutil.which("git") is None or not (root / ".git").exists():  # an environment may lie in another checkout
        return release
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True)
    return f"{release}+{described.stdout.strip()}" if described.returncode == 0 else release
