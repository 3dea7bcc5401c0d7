"""`mdaug simulate`: a labelled folder of spectrograms from physics, with every parameter in metadata.csv."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal

from shards import atomic, provenance
from shards.errors import UserError
from shards.progress import Progress
from shards.writer import one_line_for_a_full_disk

CONFIG_FILE, METADATA_FILE = "config.yaml", "metadata.csv"
CLASSES = ("walking", "drone", "bird", "arm_swing", "fall", "sit_down", "stand_up")


@dataclass
class SimulateConfig:
    """Make class-labelled micro-Doppler spectrograms from closed-form physics, as an image folder.

    Numbers left out take the value of the preset. The same command again goes on where it was interrupted.
    """

    output_dir: Path
    """Folder for <class>/* and metadata.csv."""
    preset: Literal["families", "gait-persons"] = "families"
    """families: one class per kind of target; gait-persons: one class per walking person."""
    classes: list[str] | None = None
    """Of the preset 'families': walking, drone, bird, arm_swing, fall, sit_down (these by default), stand_up."""
    num_persons: int = 10
    """Classes ID_1, ID_2, ... of the preset 'gait-persons'."""
    images_per_class: int | None = None
    """Pictures of each class: 200 (families), 150 (gait-persons)."""
    images_per_group: int = 10
    """Pictures of the preset 'families' that show one and the same person, aircraft or bird."""
    image_size: int = 256
    """Rows and columns, a multiple of 8."""
    image_mode: Literal["rgb", "gray"] = "rgb"
    """rgb: MATLAB's jet(256); gray: the levels themselves."""
    carrier_hz: float | None = None
    """Carrier frequency in Hz: 24e9 (families), 77e9 (gait-persons)."""
    v_max_m_s: float | None = None
    """Velocity at the upper edge of the pictures in m/s: 6 (families), 5 (gait-persons)."""
    duration_s: float | None = None
    """Time that a picture spans in s: 3."""
    window_s: float | None = None
    """Window of the short-time Fourier transform in s: 0.05 (families), 0.12 (gait-persons)."""
    clip_db: float | None = None
    """Dynamic range in dB below the maximum of the picture: 45 (families), 40 (gait-persons)."""
    seed: int = 0
    """Same seed, same pictures, whatever the number of workers."""
    workers: int = 0
    """Processes; 0 takes one per core that this process may use."""

    def __post_init__(self) -> None:
        if self.preset != "families" and self.classes is not None:
            raise ValueError(f"classes is {self.classes} but preset is '{self.preset}'; give num_persons instead")
        if self.preset == "families":
            for name in self.classes or ():
                if name not in CLASSES:
                    raise ValueError(f"classes has '{name}'; accepted are {', '.join(CLASSES)}")
            if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
                raise ValueError(f"classes is {self.classes}; give at least one name, and each only once")
        for name in ("num_persons", "images_per_class", "images_per_group"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} is {number}; accepted are whole numbers from 1")
        for name in ("carrier_hz", "v_max_m_s", "duration_s", "window_s", "clip_db"):
            if (number := getattr(self, name)) is not None and not 0 < number < float("inf"):
                raise ValueError(f"{name} is {number}; accepted are numbers above 0")
        if self.image_size < 32 or self.image_size % 8:
            raise ValueError(f"image_size is {self.image_size}; accepted are multiples of 8 from 32")
        if self.workers < 0 or self.seed < 0:
            raise ValueError(f"workers is {self.workers} and seed is {self.seed}; both must be 0 or more")

    def check_output(self, inputs_there: bool) -> None:
        """Raise UserError where output_dir holds something else."""
        _refuse_other(self)


def simulate(config: SimulateConfig) -> None:
    """Write the image folder, metadata.csv (one row per picture) and, last, provenance.json.

    A picture is a pure function of (seed, class, index) and of the preset's numbers, so an interrupted run goes
    on with the pictures that are missing and ends with the bytes that it would have had.

    Raises UserError for a folder that holds something else, and when the disk is full.
    """
    folder = config.output_dir
    jobs: list[list[dict]] = _preset(config).jobs(config)
    plain = _open(folder, config)
    rows = [row for job in jobs for row in job]
    missing = [job for job in jobs if not all((folder / row["file"]).is_file() for row in job)]
    if not missing and (folder / provenance.FILE_NAME).is_file():
        print(f"{folder} is finished: {len(rows)} pictures; nothing to do")
        return
    for name in dict.fromkeys(row["class"] for row in rows):
        (folder / name).mkdir(exist_ok=True)
    for leftover in folder.glob("*/.*.tmp"):
        leftover.unlink()
    with Progress("simulating", sum(len(job) for job in missing), "image") as progress:
        for done in _run(partial(make, config), missing, config.workers):
            progress.update(done)
    atomic.write_text(folder / METADATA_FILE, table(rows))
    content = provenance.hash_files([folder / METADATA_FILE, *(folder / row["file"] for row in rows)])
    provenance.write(folder, kind="image-folder", content_hash=content, made_from={}, config=plain)
    print(f"{folder}: {len(rows)} pictures of {len({row['class'] for row in rows})} classes")


def make(config: SimulateConfig, job: list[dict]) -> int:
    """Write the pictures of one job, each under a temporary name until it is whole; return their number."""
    for row, data in _preset(config).render(config, job):
        path = config.output_dir / row["file"]
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with one_line_for_a_full_disk(path):
                temporary.write_bytes(data)
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return len(job)


def table(rows: list[dict]) -> str:
    """Return CSV text of the rows; columns in order of first appearance, empty where a class has no such parameter."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _preset(config: SimulateConfig) -> ModuleType:
    """Return the module that knows the `jobs(config)` of a preset and how to `render(config, job)` them."""
    from mdaug.radar import families, persons

    return {"families": families, "gait-persons": persons}[config.preset]


def _open(folder: Path, config: SimulateConfig) -> dict:
    """Create the folder, or make sure that it holds this very configuration; return the latter as plain values."""
    from mdaug.config import as_dict, dump

    _refuse_other(config)
    if not (folder / CONFIG_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / CONFIG_FILE, dump(config))
    return as_dict(config)


def _refuse_other(config: SimulateConfig) -> None:
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
                f"{folder} holds another run of simulate: {'; '.join(differences)}; "
                "give another --output_dir, or delete that folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that simulate did not write; give another --output_dir")
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder as --output_dir")


def _run(function: Callable[[list[dict]], int], jobs: list[list[dict]], workers: int) -> Iterator[int]:
    """Yield function(job) for every job, computed in `workers` processes."""
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
