"""The image folder that `simulate` and `spectrogram` write: claimed by one configuration, whole pictures only."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from shards import atomic
from shards.errors import UserError
from shards.writer import one_line_for_a_full_disk

CONFIG_FILE, METADATA_FILE = "config.yaml", "metadata.csv"

Job = TypeVar("Job")
Result = TypeVar("Result")


def open_folder(config: Any, command: str) -> dict:
    """Create `config.output_dir`, or make sure that it holds this very configuration; return that as plain values.

    Raises UserError as `refuse_other` does.
    """
    from mdaug.config import as_dict, dump

    refuse_other(config, command)
    folder = config.output_dir
    if not (folder / CONFIG_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / CONFIG_FILE, dump(config))
    for leftover in folder.glob("*/.*.tmp"):
        leftover.unlink()
    return as_dict(config)


def refuse_other(config: Any, command: str) -> None:
    """Raise UserError where output_dir holds something else; touches nothing."""
    import yaml

    from mdaug.config import as_dict

    folder, plain = config.output_dir, as_dict(config)
    path = folder / CONFIG_FILE
    if path.is_file():
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        differences = [
            f"{name} is {found.get(name)} there and {plain.get(name)} here"
            for name in dict.fromkeys([*found, *plain])
            if found.get(name) != plain.get(name) and name not in ("output_dir", "workers")
        ]
        if differences:
            raise UserError(
                f"{folder} holds another run of {command}: {'; '.join(differences)}; "
                "give another --output_dir, or delete that folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that {command} did not write; give another --output_dir")
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder as --output_dir")


def write_picture(path: Path, data: bytes) -> None:
    """Write the bytes of a picture under a temporary name until they are whole; UserError when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with one_line_for_a_full_disk(path):
            temporary.write_bytes(data)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def table(rows: list[dict]) -> str:
    """Return CSV text of the rows; columns in order of first appearance, empty where a class has no such parameter."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def run_all(function: Callable[[Job], Result], jobs: list[Job], workers: int) -> Iterator[Result]:
    """Yield function(job) for every job in their order, computed in `workers` processes; 0: one per core."""
    workers = min(workers or _cores(), len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    # Spawned, not forked: a fork of a process with threads (BLAS, torch) may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _end_with_parent) as pool:
        try:
            yield from pool.map(function, jobs, chunksize=min(8, -(-len(jobs) // workers)))
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; run the same command with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    """Let this worker end when the process that started it is gone: a killed parent cannot tell its workers."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
