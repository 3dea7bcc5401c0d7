"""Tables of a row per sample that are written once, by the first process that wants one, and mapped by all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from shards import atomic
from shards.errors import UserError

LOCK_FILE = ".samples.lock"


def write(path: Path, dtype: np.dtype, shape: tuple[int, ...], rows: Iterator[bytes]) -> None:
    """Write a table as an npy file, a part of its rows after the other."""
    with atomic.replacing(path) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in rows:
            file.write(part)


def read(
    path: Path, shape: tuple[int, ...], dtype: Callable[[], np.dtype], rows: Callable[[], Iterator[bytes]]
) -> np.ndarray:
    """Return the mapped table of a file; where it cannot be written each process keeps the rows in memory.

    Args:
        path: the file, in the folder that the rows are made from.
        shape: of the table; nothing may be empty.
        dtype: its type, asked for where it has to be made.
        rows: its rows, likewise.

    Raises:
        UserError: a file that is damaged, or what `rows` raises.
    """
    if not path.is_file():
        try:
            with atomic.locked(path.parent / LOCK_FILE):
                if not path.is_file():
                    write(path, dtype(), shape, rows())
        except OSError:
            return np.frombuffer(b"".join(rows()), dtype=dtype()).reshape(shape)
    try:
        table = np.load(path, mmap_mode="r")
        if table.shape == shape:
            return np.asarray(table)  # without memmap's slow access to single rows
    except (ValueError, EOFError):
        pass
    raise UserError(f"{path} is cut or damaged; delete it and run the same command again, which makes it again")
