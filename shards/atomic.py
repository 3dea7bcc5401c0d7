"""Files that a reader sees whole or not at all, and the leftovers of writers that were killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when the block ends well, and goes when it does not.

    Until then it is `.NAME.RANDOM.tmp` beside it, locked (flock), so that `remove_debris` tells a file that is being
    written from one whose writer was killed.

    Args:
        path: the file to write; its folder is there.
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


def write_text(path: Path, text: str) -> None:
    """Write a small text file in UTF-8 so that a reader sees the old content or the new one, never half of it."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock (flock) of a file; whoever wants it too calls `waiting` and waits.

    It goes with the process that holds it. Where the file system has no locks nobody waits.
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
    """Remove the temporary files below `folder` itself whose writers are dead.

    Where the file system has no locks everything stays, since nothing tells the dead from the living.

    Args:
        folder: where to look; not in the folders in it.
        name: what was being written, as a pattern.
    """
    for path in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError), open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _open_locked(path: Path, mode: str, options: dict[str, Any]) -> IO[Any]:
    while True:
        file = open(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"), mode, **options)  # noqa: SIM115 - the caller closes it
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # taken for debris between `open` and `flock`
