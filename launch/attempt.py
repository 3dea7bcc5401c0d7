"""`python -m launch.attempt begin|end FOLDER [STATUS]`: what the batch script does before and after the ranks.

Slurm starts the same script again after a requeue. Each start is an attempt with a folder of its own for the ranks'
reports. Before the ranks start, the attempts are counted, and a job that restarts without progress is stopped. After
they ended, their reports decide whether the job is done, has failed (the earliest error is printed), or was asked to
stop and is to be requeued (exit status 75).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from launch import job as jobs
from shards.errors import print_every_character
from shards.output_folder import read_progress

STUCK_AFTER = 3  # restarts in a row that began where the one before them did
STOPPED = {128 + signal.SIGUSR2, 128 + signal.SIGTERM}


def saved_progress(output_dir: Path) -> str:
    """Return a text that changes whenever a killed command would have more left on disk."""
    progress = read_progress(output_dir)
    return f"{progress.saved:,} {progress.unit}s" if progress is not None and progress.saved else "the start"


def begin(folder: Path) -> int:
    """Count this attempt; returns 0, or 1 with a message where the job must not go on."""
    job, number = jobs.read_job(folder), jobs.attempt_number()
    saved = saved_progress(Path(job.output_dir))

    # Record the attempt, and make room for the reports of its ranks.
    (folder / jobs.OUTCOME_FILE).unlink(missing_ok=True)
    print(f"{jobs.BEGINS}: {number}, from {saved}", flush=True)
    with open(folder / jobs.ATTEMPTS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": number, "time": time.time(), "progress": saved}) + "\n")
    jobs.reports_folder(folder, number).mkdir(parents=True, exist_ok=True)

    # Give up where restarts lead nowhere.
    if number > job.max_restarts:
        return _finish(folder, 1, f"restarted {number} times, more than max_restarts={job.max_restarts}: stopped")
    latest = [attempt["progress"] for attempt in jobs.read_attempts(folder)][-STUCK_AFTER - 1 :]
    if len(latest) > STUCK_AFTER and len(set(latest)) == 1:
        return _finish(
            folder, 1,
            f"{STUCK_AFTER} restarts without progress (still at {saved!r}): stopped. Save more often (--save_epochs), "
            "or raise time_minutes or signal_delay_seconds of the profile; the same command continues",
        )  # fmt: skip
    return 0


def end(folder: Path, status: int) -> int:
    """Judge this attempt by the reports of its ranks and srun's status; returns the status of the batch script."""
    job, reports_dir = jobs.read_job(folder), jobs.reports_folder(folder, jobs.attempt_number())
    reports = [jobs.read_report(path) for path in sorted(reports_dir.glob("rank-*.json"))]
    missing = sorted(set(range(job.ranks)) - {report.rank for report in reports})
    names = ", ".join(map(str, missing))

    # An error of any rank comes first, whatever happened to the others.
    if failures := sorted((report for report in reports if report.error), key=lambda report: report.time):
        lines = jobs.describe_failures(failures, job.ranks, Path(job.logs))
        if missing:
            lines.append(f"without a report: rank {names}")
        return _finish(folder, failures[0].status, "\n".join(lines))

    # srun, too, ends the other ranks with SIGTERM when one dies. A rank that began and left no report died of itself;
    # one that never began may have been stopped before it could listen.
    stopped = any(report.status in STOPPED for report in reports) or (status in STOPPED and bool(missing))
    if stopped and not any(jobs.started_path(reports_dir, rank).is_file() for rank in missing):
        return _finish(folder, jobs.REQUEUE, "asked to stop; to be continued")
    if missing:
        text = f"rank {names} of {job.ranks} was killed from outside, ran out of memory, or crashed in native code"
        return _finish(folder, status or 1, text)

    worst = max(report.status for report in reports)
    return _finish(folder, worst or status, "done" if worst == status == 0 else f"ended with status {worst or status}")


def _finish(folder: Path, status: int, text: str) -> int:
    jobs.write_outcome(folder, status, text)
    print(f"launch: {text}", flush=True)
    return status


if __name__ == "__main__":
    print_every_character()
    if sys.argv[1] == "begin":
        sys.exit(begin(Path(sys.argv[2])))
    sys.exit(end(Path(sys.argv[2]), int(sys.argv[3])))
