"""The record of a job on disk: what was started, how its ranks ended, and how it stands.

    <folder>/job.json                             what was started, and by whom (`Job`)
             config.yaml                          what the ranks read (preflight.py)
             attempts.jsonl                       one line for each start of the batch script (attempt.py)
             reports/attempt-0000/rank-00003.json how a rank ended (`Report`)
             outcome.json                         how the last attempt ended
             workers/17/                          the same files again for each task of a job array

A job of SLURM keeps it in `logs/slurm/`, ranks on this machine in `logs/local/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from shards import atomic
from shards.errors import UserError

JOB_FILE, ATTEMPTS_FILE, OUTCOME_FILE = "job.json", "attempts.jsonl", "outcome.json"
WORKERS = "workers"
REQUEUE = 75  # EX_TEMPFAIL: the batch script requeues the job
BEGINS = "launch: an attempt begins"  # in what the batch script and each rank print

# States of ranks on this machine.
RUNNING, COMPLETED, STOPPED, FAILED, KILLED, ELSEWHERE = (
    "RUNNING", "COMPLETED", "STOPPED", "FAILED", "KILLED", "ELSEWHERE",
)  # fmt: skip
LOCAL_ENDED = {COMPLETED, STOPPED, FAILED, KILLED, ELSEWHERE}
BY_SIGNAL = {128 + signal.SIGINT, 128 + signal.SIGTERM}
CONTINUES = "the same command continues from what was saved"
LOCAL_EXPLANATIONS = {
    STOPPED: CONTINUES,
    KILLED: f"the launcher was killed, or the machine went down, before the run had an outcome; {CONTINUES}",
    ELSEWHERE: "it was started on another machine, the only one that knows whether it runs; ask there",
}


@dataclass
class Job:
    """A submitted job, or ranks on one machine."""

    command: str
    output_dir: str
    ranks: int
    max_restarts: int
    logs: str
    """Folder of the ranks' logs."""
    job_id: str = ""
    submitted: float = 0.0
    pid: int = 0
    """Without SLURM: the process of the launcher,"""
    host: str = ""
    """and the machine that it runs on."""

    def __str__(self) -> str:
        """Return its name for people."""
        return f"process {self.pid} on {self.host}" if self.pid else f"job {self.job_id}"

    def write(self, folder: Path) -> None:
        """Write `job.json`."""
        atomic.write_text(folder / JOB_FILE, json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class Report:
    """How a rank ended. A rank that was killed leaves none."""

    rank: int
    status: int
    """Exit status: 0 done, 1 a failure with a traceback, 2 a mistake of the user, else what the command chose."""
    error: str
    """The traceback or the line for the user; empty if there was none."""
    stopped: bool
    """Whether SIGTERM ended it because the command had no handler of its own."""
    time: float
    """When it ended (seconds since the epoch)."""


class Outcome(NamedTuple):
    """How the last attempt of a job ended."""

    status: int
    text: str

    @property
    def failed(self) -> bool:
        """Whether it ended neither well nor to be continued."""
        return self.status not in (0, REQUEUE)


def logs_of(output_dir: Path, parallel: bool) -> Path:
    """Return the folder of a command's logs: in the run folder, or beside a folder that contains nothing but data."""
    output_dir = output_dir.absolute()
    return output_dir / "logs" if parallel else output_dir.with_name(f"{output_dir.name}.logs")


def slurm_folder(output_dir: Path, parallel: bool) -> Path:
    """Return the record of a SLURM job."""
    return logs_of(output_dir, parallel) / "slurm"


def local_folder(output_dir: Path) -> Path:
    """Return the record of ranks on this machine."""
    return logs_of(output_dir, parallel=True) / "local"


def records(output_dir: Path) -> list[Path]:
    """Return all records of an output folder, the last one last."""
    folders = [slurm_folder(output_dir, True), slurm_folder(output_dir, False), local_folder(output_dir)]
    recorded = [folder for folder in folders if (folder / JOB_FILE).is_file()]
    return sorted(recorded, key=lambda folder: read_job(folder).submitted)


def find(output_dir: Path) -> Path:
    """Return the last record of an output folder; raises UserError where there is none."""
    folders = records(output_dir)
    if not folders:
        raise UserError(
            f"{output_dir}: no SLURM job was submitted for this folder and no ranks were started; a command that runs "
            "in a terminal alone shows its log there, and Ctrl-C there lets it save and stop"
        )
    return folders[-1]


def read_job(folder: Path) -> Job:
    """Read `job.json`."""
    return Job(**json.loads((folder / JOB_FILE).read_text(encoding="utf-8")))


def worker_folder(folder: Path, worker: int | str) -> Path:
    """Return the record of one task of a job array."""
    return folder / WORKERS / str(worker)


def tasks(folder: Path) -> list[Path]:
    """Return the records of the tasks of a job array in their order, or that of the job alone."""
    return sorted((folder / WORKERS).glob("*"), key=lambda task: int(task.name)) or [folder]


def log_path(logs: Path, rank: int) -> Path:
    """Return the file that holds everything a rank printed."""
    return logs / f"rank-{rank:05d}.log"


def started_path(reports: Path, rank: int) -> Path:
    """Return the file that a rank makes once a signal can no longer be lost."""
    return reports / f"rank-{rank:05d}.started"


def report_path(reports: Path, rank: int) -> Path:
    """Return the file that holds the Report of a rank."""
    return reports / f"rank-{rank:05d}.json"


def attempt_number() -> int:
    """Return the number of this attempt, from 0, inside a job of SLURM."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def reports_folder(folder: Path, attempt: int) -> Path:
    """Return the folder for the reports of one attempt; those of an earlier attempt are never read for it."""
    return folder / "reports" / f"attempt-{attempt:04d}"


def read_report(path: Path) -> Report:
    """Read the report of a rank."""
    return Report(**json.loads(path.read_text(encoding="utf-8")))


def describe_failures(failures: list[Report], ranks: int, logs: Path) -> list[str]:
    """Return lines on failed ranks: a headline, the first error, a line for each other error.

    Args:
        failures: the reports that name an error, the earliest first.
        ranks: number of ranks of the job.
        logs: folder of their logs.
    """
    first, *others = failures
    lines = [f"rank {first.rank} of {ranks} failed first; its log: {log_path(logs, first.rank)}", first.error.rstrip()]
    for other in others:
        if other.error != first.error:
            after = other.time - first.time
            lines.append(f"then rank {other.rank} ({after:.1f} s later): {other.error.splitlines()[-1]}")
    return lines


def read_attempts(folder: Path) -> list[dict]:
    """Return what every attempt so far found when it began: {"attempt", "time", "progress"}, in the order of time."""
    files = [task / ATTEMPTS_FILE for task in tasks(folder)]
    lines = [line for file in files if file.is_file() for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(map(json.loads, lines), key=lambda attempt: attempt["time"])


def running_since(folder: Path) -> float:
    """Return when the ranks of a running job began, of an array those of the task that runs longest."""
    last = [read_attempts(task)[-1:] for task in tasks(folder)]
    return min((attempt["time"] for attempts in last for attempt in attempts), default=read_job(folder).submitted)


def read_outcome(folder: Path) -> Outcome | None:
    """Return the outcome of the last attempt, or None while it runs or if it was killed before it had one.

    Of a job array: the first failure of a task, else None while any task has no outcome.
    """
    outcomes = []
    for task in tasks(folder):
        path, name = task / OUTCOME_FILE, "" if task == folder else f"worker {task.name}: "
        with contextlib.suppress(FileNotFoundError):  # a new attempt removes it
            record = json.loads(path.read_text(encoding="utf-8"))
            outcomes.append(Outcome(record["status"], name + record["text"]))
    failed = [outcome for outcome in outcomes if outcome.failed]
    if failed or len(outcomes) < len(tasks(folder)):
        return failed[0] if failed else None
    return max(outcomes)  # one that is to be continued before those that are done


def write_outcome(folder: Path, status: int, text: str) -> None:
    """Write what `read_outcome` reads."""
    atomic.write_text(folder / OUTCOME_FILE, json.dumps({"status": status, "text": text}) + "\n")


def begin_local(command: str, output_dir: Path, ranks: int) -> None:
    """Record that this process runs a command on ranks of this machine."""
    folder = local_folder(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME_FILE).unlink(missing_ok=True)
    Job(
        command=command,
        output_dir=str(output_dir.absolute()),
        ranks=ranks,
        max_restarts=0,
        logs=str(folder.parent),
        submitted=time.time(),
        pid=os.getpid(),
        host=platform.node(),
    ).write(folder)


def local_state(folder: Path, job: Job) -> str:
    """Return how recorded ranks of a machine stand; ELSEWHERE where only another machine knows."""
    running = _launcher_runs(job)  # asked before the outcome: a launcher writes that, then ends
    outcome = read_outcome(folder)
    if outcome is not None:
        return COMPLETED if outcome.status == 0 else STOPPED if outcome.status in BY_SIGNAL else FAILED
    if job.host != platform.node():
        return ELSEWHERE
    return RUNNING if running else KILLED


def _launcher_runs(job: Job) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(job.pid)
        # Younger than the record: another process has the number now.
        return launcher.create_time() <= job.submitted and is_alive(launcher)
    return False


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def stop_local(job: Job) -> None:
    """Stop the launcher of a run, as Ctrl-C does; raises UserError where this user may not."""
    try:
        os.kill(job.pid, signal.SIGTERM)
    except PermissionError:
        raise UserError(f"process {job.pid} belongs to another user, who alone can stop it") from None
