"""Run a function as several ranks: processes of this machine, joined over gloo.

The processes are forked from a server that has imported the heavy libraries once. With GPUs each begins anew: these
libraries ask for GPUs when they are imported, and CUDA works in no process that is forked after that.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from launch.local import free_port
from shards.validation import WORKER, WORKERS
from tests.one_line import every_failure_in_one_line

_CONTEXT: Any = multiprocessing.get_context("forkserver" if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else "spawn")
multiprocessing.set_forkserver_preload(
    [
        "torch",
        "deepspeed",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # deepspeed.initialize imports it: torch.compile, over a second
        "diffusers",
        "jsonargparse",
        "mdaug.training.vqvae_task",
        "mdaug.training.ldm_task",
    ]
)


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 600) -> list[Any]:
    """Call `function(*arguments)` on every rank and return the results in rank order; a failure fails the test."""
    queue = _CONTEXT.Queue()
    processes = start_ranks(world_size, _report, queue, function, arguments)
    results: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, error, result = queue.get(timeout=timeout)
            if error is not None:
                pytest.fail(f"rank {rank} of {world_size}:\n{error}")
            results[rank] = result
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()
    return [results[rank] for rank in range(world_size)]


def start_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Start processes that call `function(*arguments)` as ranks, and return them in rank order."""
    port = free_port()
    processes = [
        _CONTEXT.Process(target=_rank, args=(rank, world_size, port, function, arguments)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def _rank(rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: tuple) -> None:
    import torch

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ.update({WORKER: str(rank), WORKERS: str(world_size)})
    torch.set_num_threads(1)
    function(*arguments)


def _report(queue: Any, function: Callable[..., Any], arguments: tuple) -> None:
    rank = int(os.environ["RANK"])
    try:
        with every_failure_in_one_line():
            result = function(*arguments)
        queue.put((rank, None, result))
    except BaseException:
        queue.put((rank, traceback.format_exc(), None))
