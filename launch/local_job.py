"""Ranks on this machine, as another terminal sees them: by the launcher's record and its process."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from pathlib import Path

import psutil

from launch import attempt
from launch.attempt import Job
from shards.errors import UserError

RUNNING, COMPLETED, STOPPED, FAILED, KILLED, ELSEWHERE = (
    "RUNNING", "COMPLETED", "STOPPED", "FAILED", "KILLED", "ELSEWHERE",
)  # fmt: skip
BY_SIGNAL = {128 + signal.SIGINT, 128 + signal.SIGTERM}
ENDED = {COMPLETED, STOPPED, FAILED, KILLED, ELSEWHERE}
AGAIN = "the same command continues from what was saved"
WORDS = {
    STOPPED: AGAIN,
    KILLED: f"the launcher was killed, or the machine went down, before it could say how the run ended; {AGAIN}",
    ELSEWHERE: "it was started on another machine, the only one that knows whether it runs; ask there",
}


def folder(output_dir: Path) -> Path:
    """Return where the launcher keeps what it knows of the ranks of this machine."""
    return output_dir.absolute() / "logs" / "local"


def begin(command: str, output_dir: Path, ranks: int) -> None:
    """Record that this process runs a command."""
    place = folder(output_dir)
    place.mkdir(parents=True, exist_ok=True)
    (place / attempt.OUTCOME_FILE).unlink(missing_ok=True)
    Job(
        command=command,
        output_dir=str(output_dir.absolute()),
        ranks=ranks,
        max_restarts=0,
        logs=str(place.parent),
        submitted=time.time(),
        pid=os.getpid(),
        host=platform.node(),
    ).write(place)


def state(place: Path, job: Job) -> str:
    """Return how a recorded run stands; ELSEWHERE where only another machine can tell."""
    runs = _runs(job)  # asked before the outcome: a launcher writes that, then ends
    told = attempt.read_outcome(place)
    if told is not None:
        return COMPLETED if told[0] == 0 else STOPPED if told[0] in BY_SIGNAL else FAILED
    if job.host != platform.node():
        return ELSEWHERE
    return RUNNING if runs else KILLED


def _runs(job: Job) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(job.pid)
        return launcher.create_time() <= job.submitted and alive(launcher)  # else another process has the number now
    return False


def alive(process: psutil.Process) -> bool:
    """Return whether a process still runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def stop(job: Job) -> None:
    """Tell the launcher of a run to stop, as Ctrl-C does; raises UserError where it may not be told."""
    try:
        os.kill(job.pid, signal.SIGTERM)
    except PermissionError:
        raise UserError(f"process {job.pid} belongs to another user, who alone can stop it") from None
