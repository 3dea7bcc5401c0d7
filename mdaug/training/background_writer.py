"""Folders written behind the training: it waits only while the state is copied to CPU memory.

A thread of every rank writes its files. At a later step boundary all ranks agree that every file is there, and only
then the folder gets its marker; readers ignore a folder without it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mdaug import distributed
from shards import atomic
from shards.errors import UserError

MARKER = "COMPLETE"
ASK_EVERY = 10  # steps on a GPU between two checks whether all ranks have written: the answer waits for the device


@dataclass
class Bundle:
    """A folder that is being written."""

    folder: Path
    files: dict[Path, Callable[[Path], object]]
    """Files of this rank -> the function that writes each from memory."""
    committed: Callable[[], None]
    """Called on every rank after the marker is there."""
    marked: bool = True
    """Whether the folder gets a marker; else its own last file says that it is whole."""


def prepare(folder: Path) -> None:
    """Make an empty folder, deleting what an interrupted write has left there; every rank calls it."""
    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    distributed.barrier()


def complete(parent: Path) -> list[Path]:
    """Return the complete folders `samples-*` of a parent folder, oldest first."""
    return sorted(path for path in parent.glob("samples-*") if (path / MARKER).is_file())


def samples_of(folder: Path) -> int:
    """Return the samples seen at a folder `samples-*`, from its name."""
    return int(folder.name.removeprefix("samples-"))


def keep_only(parent: Path, kept: list[Path]) -> None:
    """Delete the other folders `samples-*`, incomplete ones too, on rank 0."""
    if not distributed.is_main():
        return
    for path in parent.glob("samples-*"):
        if path not in kept:
            (path / MARKER).unlink(missing_ok=True)  # the marker first: a half-deleted folder is never chosen
            shutil.rmtree(path)


@dataclass(frozen=True)
class Written:
    """A set of folders that is complete."""

    folders: list[Path]
    stalled: float
    """Seconds that the training waited for them."""
    seconds: float
    """Seconds until they were on the disk."""

    def __str__(self) -> str:
        """Return the line for the log."""
        names = " and ".join(str(Path(*folder.parts[-2:])) for folder in self.folders)
        return f"{names}: training waited {self.stalled:.2f} s, written in {self.seconds:.2f} s"


class BackgroundWriter:
    """Writes one set of folders at a time. Every rank makes the same calls."""

    def __init__(self) -> None:
        self.stalled = 0.0
        """Seconds that the training has waited so far."""
        self.written = 0
        """Sets of folders written so far."""
        self._bundles: list[Bundle] = []
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._stall = self._seconds = 0.0

    def write(self, collect: list[Callable[[], Bundle]]) -> Written | None:
        """Copy a state and begin to write it, once what is still being written is complete; returns as `poll` does."""
        finished = self.finish()
        begun = time.perf_counter()
        self._bundles = [copy() for copy in collect]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._stall = time.perf_counter() - begun
        self.stalled += self._stall
        return finished

    def poll(self, step: int, device: torch.device) -> Written | None:
        """Mark the folders complete if all ranks have written; every rank calls it at every step boundary.

        Returns what is complete now, or None. Raises UserError on all ranks if one could not write.
        """
        if self._thread is None or (device.type == "cuda" and step % ASK_EVERY):
            return None
        begun = time.perf_counter()
        busy, failed = distributed.sum_over_ranks(
            torch.tensor([float(self._thread.is_alive()), float(self._error is not None)], device=device)
        ).tolist()
        finished = self._commit(failed > 0) if busy == 0 else None
        self.stalled += time.perf_counter() - begun
        return finished

    def finish(self) -> Written | None:
        """Wait until what is being written is complete; returns and raises as `poll` does."""
        if self._thread is None:
            return None
        begun = time.perf_counter()
        self._thread.join()
        failed = distributed.any_rank(self._error is not None, distributed.device())
        self._stall += time.perf_counter() - begun
        finished = self._commit(failed)
        self.stalled += time.perf_counter() - begun
        return finished

    def _run(self) -> None:
        begun = time.perf_counter()
        try:
            for bundle in self._bundles:
                for path, write in bundle.files.items():
                    write(path)
                    atomic.let_others_read(path)
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())  # on the disk before the folder is marked complete
        except BaseException as error:
            self._error = error
        self._seconds = time.perf_counter() - begun

    def _commit(self, failed: bool) -> Written:
        bundles, self._bundles, self._thread = self._bundles, [], None
        if failed:
            reason = self._error or "another rank failed"
            raise UserError(f"{bundles[0].folder} could not be written: {reason}; the same command resumes from before")
        for bundle in bundles:
            if distributed.is_main() and bundle.marked:
                atomic.write_text(bundle.folder / MARKER, "")
            bundle.committed()
        self.written += any(bundle.marked for bundle in bundles)
        return Written([bundle.folder for bundle in bundles], self._stall, self._seconds)
