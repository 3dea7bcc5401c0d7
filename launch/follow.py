"""Looking at a submitted job: wait for it, tell how it stands, show its log, cancel it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from launch import attempt, ending, progress, queue
from launch.attempt import Job
from launch.local import LogStream
from launch.rank import log_path
from launch.slurm import Size, find
from shards.errors import UserError

POLL = 2.0
PATIENCE = 300.0  # seconds that a controller which restarts may leave us without an answer
BY_SIGNAL = 143  # status of a job that was cancelled


def describe(job: Job, run_dir: Path, size: Size) -> str:
    """Return what to tell about a job that was just submitted."""
    others = "and the other ranks" if size.workers == 1 else "and the other ranks and workers"
    return (
        f"launch: job {job.job_id} runs mdaug {job.command}: {size}\n"
        f"launch: logs    {log_path(Path(job.logs), 0)} ({others} beside it)\n"
        f"launch:         {find(run_dir)}/*_0_log.out (the batch script)\n"
        f"launch: state   python -m launch status {run_dir}\n"
        f"launch: follow  python -m launch logs {run_dir}\n"
        f"launch: cancel  python -m launch cancel {run_dir}"
    )


def wait(folder: Path) -> int:
    """Show the log of rank 0 as it grows until the job has ended; returns the status of the job.

    A requeued job has not ended. Ctrl-C stops the waiting and leaves the job alone.
    """
    job = attempt.read_job(folder)
    stream = LogStream(log_path(Path(job.logs), 0))
    shown, last_answer = "", time.monotonic()
    try:
        while True:
            try:
                state = queue.state(job.job_id)
                last_answer = time.monotonic()
            except UserError:
                if time.monotonic() - last_answer > PATIENCE:
                    raise
                time.sleep(POLL)
                continue
            stream.forward()
            if state != shown:
                print(f"launch: job {job.job_id} is {state.lower()}", flush=True)
                shown = state
            if state in queue.ENDED | {queue.GONE}:
                return _status(folder, state)
            time.sleep(POLL)
    except KeyboardInterrupt:
        print(f"\nlaunch: job {job.job_id} goes on; python -m launch cancel {job.output_dir} ends it", file=sys.stderr)
        return 130


def _status(folder: Path, state: str) -> int:
    """Return the status of an ended job and say why where it is not 0."""
    told = attempt.read_outcome(folder)
    state = ending.judged(folder, state)
    why = ending.explained(folder, state)
    if told is not None and told[0] != attempt.REQUEUE:
        status, text = told
    else:  # the batch script had no time to say anything; of an array, that of a task which squeue has forgotten
        status = BY_SIGNAL if state == "CANCELLED" else 1
        how = "without a word of some of its tasks" if state == "COMPLETED" else f"as {state.lower()}"
        text = f"the job ended {how}" + ("" if why else "; the same command continues from the last checkpoint")
    if status != 0:
        print("\n".join(f"launch: {line}" for line in (text, why) if line), file=sys.stderr, flush=True)
    return status


def status(run_dir: Path) -> int:
    """Print state, attempts, progress, time left and last error of the job of a run folder."""
    folder = find(run_dir)
    job = attempt.read_job(folder)
    state = queue.state(job.job_id)
    told = attempt.read_outcome(folder)
    if state == "COMPLETED" or (state == queue.GONE and told is not None):  # squeue forgets, an array task by task
        state = "COMPLETED" if told is not None and told[0] == 0 else "FAILED"
    state = ending.judged(folder, state)
    waiting = f" ({queue.reason(job.job_id)})" if state == "PENDING" else ""
    workers = len(attempt.parts(folder))
    array = f" in each of {workers} workers" if workers > 1 else ""
    print(f"job       {job.job_id}: mdaug {job.command} on {job.ranks} rank(s){array}")
    print(f"state     {state.lower()}{waiting}")
    begun = attempt.attempts(folder)
    print(f"attempts  {len(begun)}" + (f", the last from {begun[-1]['progress']}" if begun else ""))
    if (told_progress := progress.told(job, attempt.since(folder) if state == "RUNNING" else None)) is not None:
        print(f"progress  {told_progress}")
    if told is not None and told[0] not in (0, attempt.REQUEUE):
        print(f"error     {told[1]}")
    if (why := ending.explained(folder, state)) is not None:
        print(f"reason    {why}")
    return 0


def logs(run_dir: Path) -> int:
    """Print the log of rank 0 (before it exists: that of the batch script), then follow it until the job has ended."""
    folder = find(run_dir)
    job = attempt.read_job(folder)
    path = log_path(Path(job.logs), 0)
    ended = queue.state(job.job_id) in queue.ENDED | {queue.GONE}
    if not path.is_file() and ended:
        path = min(folder.glob("*_0_log.out"), default=path)
    if path.is_file():
        sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
        sys.stdout.flush()
    return 0 if ended else wait(folder)


def cancel(run_dir: Path) -> int:
    """Cancel the job of a run folder; its ranks save first, as far as the cluster gives them time (KillWait)."""
    job = attempt.read_job(find(run_dir))
    if queue.state(job.job_id) in queue.ENDED | {queue.GONE}:
        print(f"launch: job {job.job_id} has ended already")
        return 0
    queue.cancel(job.job_id)
    print(f"launch: job {job.job_id} is cancelled; the same command continues from the last checkpoint")
    return 0
