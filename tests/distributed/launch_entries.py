"""Entry points that the launcher's tests run in ranks, by name; each takes [folder]."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from shards.errors import UserError

RANK = int(os.environ.get("RANK", "-1"))
SHOWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES",
         "OMP_NUM_THREADS", "SLURM_JOB_ID")  # fmt: skip


def environment(argv: list[str]) -> None:
    seen = {name: os.environ.get(name) for name in SHOWN}
    (Path(argv[0]) / f"env-{RANK}.json").write_text(json.dumps({"argv": argv, "stdin": sys.stdin.read(), **seen}))
    print(f"rank {RANK} says hello")


def all_reduce(argv: list[str]) -> None:
    import torch

    torch.distributed.init_process_group("gloo")
    total = torch.tensor(float(RANK + 1))
    torch.distributed.all_reduce(total)
    (Path(argv[0]) / f"sum-{RANK}").write_text(str(total.item()))
    torch.distributed.destroy_process_group()


def one_raises(argv: list[str]) -> None:
    if RANK == 1:
        time.sleep(0.5)
        raise RuntimeError("the true cause")
    try:
        time.sleep(600)
    finally:
        (Path(argv[0]) / "went-on").touch()


def both_raise(argv: list[str]) -> None:
    time.sleep(1.0 - 0.8 * RANK)
    raise RuntimeError("the true cause" if RANK == 1 else "a consequence")


def one_is_killed(argv: list[str]) -> None:
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def user_error(argv: list[str]) -> None:
    raise UserError("no such folder; make it")


def status(argv: list[str]) -> int:
    return RANK * 5


def saves_when_told(argv: list[str]) -> None:
    """Like the trainer: SIGTERM sets a flag, the work ends at a boundary, and the function returns."""
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    (Path(argv[0]) / f"ready-{RANK}").write_text(str(os.getpid()))
    while not told:
        time.sleep(0.05)
    time.sleep(1.0 + 2.5 * RANK)  # longer than the launcher's patience with a rank that failed
    (Path(argv[0]) / f"saved-{RANK}").write_text(str(len(told)))


def ignores_signals(argv: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    (Path(argv[0]) / f"ready-{RANK}").write_text(str(os.getpid()))
    time.sleep(600)


def sleeps(argv: list[str]) -> None:
    """A command without a signal handler of its own, and with a child process."""
    child = subprocess.Popen(["sleep", "600"])
    (Path(argv[0]) / f"ready-{RANK}").write_text(str(os.getpid()))
    try:
        time.sleep(600)
    finally:
        child.kill()
        (Path(argv[0]) / f"cleaned-{RANK}").touch()
