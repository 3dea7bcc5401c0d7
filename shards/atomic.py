"""Files and folders that a reader sees whole or not at all, and the leftovers of writers that were killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends well, and is removed when it does not.

    Until then it is `.NAME.RANDOM.tmp` beside it, locked (flock), so that `remove_debris` tells a file that is being
    written from one whose writer was killed.

    Args:
        path: the file to write; its folder exists.
        mode: "wb" or "w".
        options: those of `open`.
    """
    file = _open_locked(path, mode, options)
    temporary = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file it was
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path, *, keep_first: bool = False) -> Iterator[Path]:
    """Make a folder that replaces `path` when the block ends well, and is removed when it does not.

    Until then it is `.NAME.RANDOM.tmp` beside it, locked like the files of `replacing`; what killed writers of the same
    folder left is removed first. Between the removal of the old folder and the arrival of the new one there is a moment
    without either.

    Args:
        path: the folder to make; the folder that it lies in exists.
        keep_first: processes may make equal folders at once: the first one stays, and readers never miss it.
    """
    remove_debris(path.parent, path.name)
    temporary, descriptor = _make_locked(path)
    old = _temporary(path)
    try:
        yield temporary
        for file in temporary.rglob("*.safetensors"):
            let_others_read(file)
        if not keep_first and path.exists():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            if not (keep_first and path.is_dir()):
                raise
    finally:
        os.close(descriptor)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file in UTF-8 so that a reader sees the old content or the new one, never half of it."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(text)


def let_others_read(file: Path) -> None:
    """Give a file the permissions that its folder has; safetensors leaves its files to their owner alone."""
    with contextlib.suppress(OSError):  # a file system without permissions
        file.chmod(file.parent.stat().st_mode & 0o666)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock (flock) of a file; another process that wants it calls `waiting` and waits.

    The lock ends with the process that holds it. Where the file system has no locks nobody waits.
    """
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_debris(folder: Path, name: str = "*") -> None:
    """Remove the temporary files and folders directly in `folder` whose writers are dead.

    Where the file system has no locks everything stays, since nothing tells the dead from the living.

    Args:
        folder: where to look; not in the folders in it.
        name: what was being written, as a pattern.
    """
    for path in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError):
            is_folder = path.is_dir()
            descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if is_folder else path.unlink()
            finally:
                os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _open_locked(path: Path, mode: str, options: dict[str, Any]) -> IO[Any]:
    while True:
        file = open(_temporary(path), mode, **options)  # noqa: SIM115 - the caller closes it
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # taken for debris between `open` and `flock`


def _make_locked(path: Path) -> tuple[Path, int]:
    """Make a temporary folder beside `path`; return it and the descriptor that holds its lock."""
    while True:
        folder = _temporary(path)
        folder.mkdir()
        with contextlib.suppress(FileNotFoundError):  # taken for debris between `mkdir` and `open`
            descriptor = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder, descriptor
            os.close(descriptor)
