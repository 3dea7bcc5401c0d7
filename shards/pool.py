"""Processes that share work on this machine: one per core, spawned, gone when the process that started them is."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from shards.errors import UserError, print_every_character

Job = TypeVar("Job")
Result = TypeVar("Result")

MOST_WORKERS = 256  # all of them start at once

_shared: tuple = ()  # of a worker process


def cores() -> int:
    """Return the number of cores that this process may use, of ranks on one machine the share of each."""
    all_of_them = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, all_of_them // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Pool:
    """`map` over processes, or in this one where one is enough; a context manager.

    Spawned, not forked: a fork of a process with threads (BLAS, torch, gloo) may hang.

    Args:
        workers: number of processes; 0: one per core.
        jobs: the most that will ever be mapped at once, so that no more processes start than have work.
        shared: further arguments of the functions that are mapped, sent once to each process.
    """

    def __init__(self, workers: int = 0, jobs: int = MOST_WORKERS, shared: tuple = ()):
        self.workers = min(workers or cores(), jobs, MOST_WORKERS)
        self.shared = shared
        self._executor: ProcessPoolExecutor | None = None
        self._mapping = False  # whether results of `map` are still to come

    def __enter__(self) -> Pool:
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, _begin, (self.shared,))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is not None:
            if kind is KeyboardInterrupt and self._mapping:
                print("\nCtrl-C: what has begun is finished first; Ctrl-C again ends it, too", file=sys.stderr)
            self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[..., Result], jobs: Sequence[Job], chunk: int = 8) -> Iterator[Result]:
        """Yield function(job, *shared) for every job in their order; a process takes up to `chunk` jobs at a time.

        Raises UserError where a process was killed; whatever `function` raises is raised here.
        """
        if self._executor is None:
            yield from (function(job, *self.shared) for job in jobs)
            return
        try:
            size = max(1, min(chunk, len(jobs) // self.workers))
            self._mapping = True
            with _ctrl_c_delayed():  # else it ends processes that start now, with a traceback each
                results = self._executor.map(functools.partial(_call, function), jobs, chunksize=size)
            yield from results
            self._mapping = False
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps because memory ran out; run the same command with fewer --workers"
            ) from None


@contextlib.contextmanager
def _ctrl_c_delayed() -> Iterator[None]:
    """Let Ctrl-C wait for the end of a block; processes that start in it never get one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(function: Callable[..., Result], job: Any) -> Result:
    return function(job, *_shared)


def _begin(shared: tuple) -> None:
    """Leave Ctrl-C to the parent, and end when it is gone: a killed parent cannot stop its workers."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print_every_character()

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
