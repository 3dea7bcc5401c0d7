"""`python -m launch status|logs|cancel RUN_DIR`: how a job stands."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from pathlib import Path

from launch import job as jobs
from launch import slurm_query
from launch.local import LogStream
from shards.errors import UserError
from shards.output_folder import is_finished, read_progress, read_run

POLL = 2.0
PATIENCE = 300.0  # seconds that a controller which restarts may leave us without an answer
BY_SIGNAL = 143  # status of a job that was cancelled
ENDED = slurm_query.ENDED | {slurm_query.GONE} | jobs.LOCAL_ENDED


def require_idle(run_dir: Path) -> None:
    """Raise UserError where a job, or ranks of this machine, are at work in a run folder or are going to be."""
    for folder in jobs.records(run_dir):
        job = jobs.read_job(folder)
        if not (job.pid or slurm_query.available()):
            continue  # the folder comes from a cluster
        if _state(folder, job) not in ENDED:
            state = "runs" if job.pid else "is in the queue"
            raise UserError(
                f"{job} of this folder {state} already; 'python -m launch status' shows its progress, "
                "'python -m launch cancel' ends it"
            )


def _state(folder: Path, job: jobs.Job) -> str:
    return jobs.local_state(folder, job) if job.pid else slurm_query.state(job.job_id)


def _explain(folder: Path, job: jobs.Job, state: str) -> str | None:
    return jobs.LOCAL_EXPLANATIONS.get(state) if job.pid else slurm_query.explain_end(folder, state)


def wait(folder: Path) -> int:
    """Show the log of rank 0 as it grows until the job has ended; returns the status of the job.

    A requeued job has not ended. Ctrl-C stops the waiting and leaves the job alone.
    """
    job = jobs.read_job(folder)
    stream = LogStream(jobs.log_path(Path(job.logs), 0))
    shown, last_answer = "", time.monotonic()
    try:
        while True:
            try:
                state = _state(folder, job)
                last_answer = time.monotonic()
            except UserError:
                if time.monotonic() - last_answer > PATIENCE:
                    raise
                time.sleep(POLL)
                continue
            stream.forward()
            if state != shown:
                print(f"launch: {job} is {state.lower()}", flush=True)
                shown = state
            if state in ENDED:
                return _exit_status(folder, job, state)
            time.sleep(POLL)
    except KeyboardInterrupt:
        cancel_it = f"python -m launch cancel {shlex.quote(job.output_dir)}"
        print(f"\nlaunch: {job} goes on; {cancel_it} ends it", file=sys.stderr)
        return 130


def _exit_status(folder: Path, job: jobs.Job, state: str) -> int:
    """Return the status of an ended job and print the reason where it is not 0."""
    outcome = jobs.read_outcome(folder)
    state = slurm_query.state_by_log(folder, state)
    reason = _explain(folder, job, state)
    if outcome is not None and outcome.status != jobs.REQUEUE:
        status, text = outcome
    else:  # the batch script had no time to write one; of an array, that of a task which squeue has forgotten
        status = BY_SIGNAL if state == "CANCELLED" else 1
        how = "without an outcome of some of its tasks" if state == "COMPLETED" else f"as {state.lower()}"
        text = f"the job ended {how}" + ("" if reason else f"; {jobs.CONTINUES}")
    if status != 0:
        print("\n".join(f"launch: {line}" for line in (text, reason) if line), file=sys.stderr, flush=True)
    return status


def status(run_dir: Path) -> int:
    """Print state, attempts, progress, time left and last error of what runs, or ran last, in a run folder."""
    if not jobs.records(run_dir):
        return _status_without_record(run_dir)
    folder = jobs.find(run_dir)
    job, outcome = jobs.read_job(folder), jobs.read_outcome(folder)

    # The state, by whoever knows it best: squeue, which forgets (an array task by task), else the outcome or the logs.
    state = _state(folder, job)
    if state == "COMPLETED" or (state == slurm_query.GONE and outcome is not None):
        state = "COMPLETED" if outcome is not None and outcome.status == 0 else "FAILED"
    state = slurm_query.state_by_log(folder, state)

    workers = len(jobs.tasks(folder))
    array = f" in each of {workers} workers" if workers > 1 else ""
    name = f"process   {job.pid} on {job.host}" if job.pid else f"job       {job.job_id}"
    print(f"{name}: mdaug {job.command} on {job.ranks} rank(s){array}")
    waiting = f" ({slurm_query.reason(job.job_id)})" if state == "PENDING" else ""
    print(f"state     {state.lower()}{waiting}")
    if not job.pid:
        attempts = jobs.read_attempts(folder)
        print(f"attempts  {len(attempts)}" + (f", the last from {attempts[-1]['progress']}" if attempts else ""))
    since = jobs.running_since(folder) if state == jobs.RUNNING else None
    if (progress := describe_progress(Path(job.output_dir), since)) is not None:
        print(f"progress  {progress}")
    if outcome is not None and outcome.failed and state != jobs.STOPPED:
        print(f"error     {outcome.text}")
    if (reason := _explain(folder, job, state)) is not None:
        print(f"reason    {reason}")
    return 0


def _status_without_record(run_dir: Path) -> int:
    """Print how a folder stands in which a command worked alone, in a terminal, without ranks and without a job."""
    if not run_dir.is_dir():
        raise UserError(
            f"{run_dir} {'is a file' if run_dir.exists() else 'does not exist'}; name the output folder of a command"
        )
    run = read_run(run_dir)
    command = "" if run is None else f"mdaug {run['command']}, "
    state = "finished" if is_finished(run_dir) else "not finished"
    changed = time.time() - _last_change(run_dir)
    print(
        f"state     {command}{state}; no launcher has a record, so one process in a terminal works here, or none; "
        f"last change {duration(changed)} ago"
    )
    if (progress := describe_progress(run_dir, None)) is not None:
        print(f"progress  {progress}")
    return 0


def _last_change(folder: Path) -> float:
    """Return when something directly in a folder changed last; what is written there may come and go meanwhile."""
    times = [folder.stat().st_mtime]
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            times.append(path.lstat().st_mtime)
    return max(times)


def logs(run_dir: Path) -> int:
    """Print the log of rank 0 (before it exists: that of the batch script), then follow it until the job has ended.

    Of a job that has failed, the earliest error of any rank comes first.
    """
    folder = jobs.find(run_dir)
    job, outcome = jobs.read_job(folder), jobs.read_outcome(folder)
    path = jobs.log_path(Path(job.logs), 0)
    ended = _state(folder, job) in ENDED
    if not path.is_file() and ended:
        path = min(folder.glob("*_0_log.out"), default=path)
    if ended and outcome is not None and outcome.failed:
        print(f"launch: {outcome.text}\n")
    if path.is_file():
        sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
        sys.stdout.flush()
    return 0 if ended else wait(folder)


def cancel(run_dir: Path) -> int:
    """Cancel what runs in a run folder; its ranks save first, as far as the cluster gives them time (KillWait)."""
    folder = jobs.find(run_dir)
    job = jobs.read_job(folder)
    state = _state(folder, job)
    if state == jobs.ELSEWHERE:
        raise UserError(f"{job} can be stopped on that machine only")
    if state in ENDED:
        print(f"launch: {job} has ended already")
        return 0
    if job.pid:
        jobs.stop_local(job)
        print(f"launch: {job} is stopping, and its ranks save; {jobs.CONTINUES}")
    else:
        slurm_query.cancel(job.job_id)
        print(f"launch: {job} is cancelled; {jobs.CONTINUES}")
    return 0


def describe_progress(output_dir: Path, since: float | None) -> str | None:
    """Return how far a run is and, where its present attempt shows a rate, the time left; None before it has begun.

    Args:
        output_dir: the output folder of the command.
        since: when its ranks began (seconds since the epoch); None: nothing runs, so no time is left.
    """
    progress = read_progress(output_dir)
    if progress is None:
        return None
    percent = 100 * progress.done / max(progress.total, 1)
    text = f"{progress.done:,} of {progress.total:,} {progress.unit}s ({percent:.0f} %)"
    text += f", {progress.note}" if progress.note else ""
    if since is None or progress.time < since or progress.seconds_left is None:
        return text
    return f"{text}, {duration(progress.seconds_left)} left"


def duration(seconds: float) -> str:
    """Return a time as text, such as 1 d 01:01:01."""
    days = f"{int(seconds // 86400)} d " if seconds >= 86400 else ""
    return days + time.strftime("%H:%M:%S", time.gmtime(seconds % 86400))
