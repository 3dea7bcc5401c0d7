"""`python -m launch.attempt begin|end FOLDER [STATUS]`: what the batch script does before and after the ranks.

Slurm starts the same script again after a requeue. Each start is an attempt with a folder of its own for the ranks'
reports. Before the ranks start, the attempts are counted and a job that restarts without getting anywhere is stopped;
after they ended, their reports decide whether the job is done, has failed (the earliest error is printed), or was told
to stop and is to be requeued (exit status 75).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.rank import Report, account, started_path
from shards import atomic

REQUEUE = 75  # EX_TEMPFAIL: the batch script requeues the job
STUCK_AFTER = 3  # restarts in a row that began where the one before them did
STOPPED = {128 + signal.SIGUSR2, 128 + signal.SIGTERM}
JOB_FILE, ATTEMPTS_FILE, OUTCOME_FILE = "job.json", "attempts.jsonl", "outcome.json"
NOTHING = "the start"  # progress before the first checkpoint or shard
BEGINS = "launch: an attempt begins"  # in what the batch script and each rank print
WORKERS = "workers"  # folder of the tasks of a job array, each with the same files again


@dataclass
class Job:
    """A submitted job, or ranks on one machine, as `job.json` keeps them in the folder of the job."""

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
        """Return it in words."""
        return f"process {self.pid} on {self.host}" if self.pid else f"job {self.job_id}"

    def write(self, folder: Path) -> None:
        """Write `job.json`."""
        atomic.write_text(folder / JOB_FILE, json.dumps(asdict(self), indent=2) + "\n")


def read_job(folder: Path) -> Job:
    """Read `job.json`."""
    return Job(**json.loads((folder / JOB_FILE).read_text(encoding="utf-8")))


def of_worker(folder: Path, worker: int | str) -> Path:
    """Return what the folder of a job is to one task of a job array."""
    return folder / WORKERS / str(worker)


def parts(folder: Path) -> list[Path]:
    """Return the folders of the tasks of a job array in their order, or that of the job alone."""
    return sorted((folder / WORKERS).glob("*"), key=lambda part: int(part.name)) or [folder]


def number() -> int:
    """Return the number of this attempt, from 0, inside a job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def reports_folder(folder: Path, attempt: int) -> Path:
    """Return the folder for the reports of one attempt; those of an earlier attempt are never read for it."""
    return folder / "reports" / f"attempt-{attempt:04d}"


def shards(output_dir: Path) -> list[Path]:
    """Return the sidecars of the finished shards of a command; folders of a file per image are not looked into."""
    folders = (".", "train", "val", "test", "latents/train", "latents/val")
    return [path for name in folders for path in (output_dir / name).glob("[0-9]*.json")]


def progress(output_dir: Path) -> str:
    """Return a text that changes whenever the command has got further on disk: its checkpoint, or what it has made."""
    latest = output_dir / "latest"
    if latest.is_file():
        return latest.read_text(encoding="utf-8").strip()
    made = {
        "shards": shards(output_dir),
        "results": list(output_dir.glob("results/*.json")),  # of evaluate
        "pictures": list(output_dir.glob("*/*.png")),  # of simulate and spectrogram
    }
    return next((f"{len(files)} {what}" for what, files in made.items() if files), NOTHING)


def attempts(folder: Path) -> list[dict]:
    """Return what every attempt so far found when it began: {"attempt", "time", "progress"}, in the order of time."""
    files = [part / ATTEMPTS_FILE for part in parts(folder)]
    lines = [line for file in files if file.is_file() for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(map(json.loads, lines), key=lambda each: each["time"])


def since(folder: Path) -> float | None:
    """Return when the ranks of a job that runs began, of an array those of the task that runs longest; None: never."""
    begun = [attempts(part)[-1:] for part in parts(folder)]
    return min((each["time"] for last in begun for each in last), default=None)


def begin(folder: Path) -> int:
    """Count this attempt; returns 0, or 1 with a message where the job must not go on."""
    job = read_job(folder)
    found = progress(Path(job.output_dir))
    (folder / OUTCOME_FILE).unlink(missing_ok=True)
    print(f"{BEGINS}: {number()}, from {found}", flush=True)
    with open(folder / ATTEMPTS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": number(), "time": time.time(), "progress": found}) + "\n")
    reports_folder(folder, number()).mkdir(parents=True, exist_ok=True)
    told = attempts(folder)
    if number() > job.max_restarts:
        return _finish(folder, 1, f"restarted {number()} times, more than max_restarts={job.max_restarts}: stopped")
    if len(told) > STUCK_AFTER and len({each["progress"] for each in told[-STUCK_AFTER - 1 :]}) == 1:
        return _finish(
            folder, 1,
            f"{STUCK_AFTER} restarts without progress (still at {found!r}): stopped. Save more often (--save_epochs), "
            "or raise time_minutes or signal_delay_seconds of the profile; the same command continues",
        )  # fmt: skip
    return 0


def end(folder: Path, status: int) -> int:
    """Judge this attempt by the reports of its ranks and srun's status; returns the status of the batch script."""
    job = read_job(folder)
    place = reports_folder(folder, number())
    reports = read_reports(place)
    failures = sorted((report for report in reports if report.error), key=lambda report: report.time)
    missing = sorted(set(range(job.ranks)) - {report.rank for report in reports})
    if failures:
        lines = account(failures, job.ranks, Path(job.logs))
        if missing:
            lines.append(f"without a word: rank {', '.join(map(str, missing))}")
        return _finish(folder, failures[0].status, "\n".join(lines))
    # srun, too, ends the other ranks with SIGTERM when one dies. One that began and left no report has died of itself;
    # one that never began may have been told to stop before it could listen.
    told = any(report.status in STOPPED for report in reports) or (status in STOPPED and bool(missing))
    if told and not any(started_path(place, rank).is_file() for rank in missing):
        return _finish(folder, REQUEUE, "told to stop; to be continued")
    if missing:
        names = ", ".join(map(str, missing))
        text = f"rank {names} of {job.ranks} was killed from outside, ran out of memory, or crashed in native code"
        return _finish(folder, status or 1, text)
    worst = max(report.status for report in reports)
    return _finish(folder, worst or status, "done" if worst == status == 0 else f"ended with status {worst or status}")


def read_reports(folder: Path) -> list[Report]:
    """Return the reports that ranks have left in a folder."""
    return [Report(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("rank-*.json"))]


def read_outcome(folder: Path) -> tuple[int, str] | None:
    """Return (status, text) of the last attempt, or None while it runs or if it was killed before it could say.

    Of a job array: the first failure of a task, else None while any task has no outcome.
    """
    told: list[tuple[int, str]] = []
    for part in parts(folder):
        path, where = part / OUTCOME_FILE, "" if part == folder else f"worker {part.name}: "
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            told.append((record["status"], where + record["text"]))
    failed = [each for each in told if each[0] not in (0, REQUEUE)]
    if failed or len(told) < len(parts(folder)):
        return failed[0] if failed else None
    return max(told)  # one that is to be continued before those that are done


def write_outcome(folder: Path, status: int, text: str) -> None:
    """Write what `read_outcome` reads."""
    atomic.write_text(folder / OUTCOME_FILE, json.dumps({"status": status, "text": text}) + "\n")


def _finish(folder: Path, status: int, text: str) -> int:
    write_outcome(folder, status, text)
    print(f"launch: {text}", flush=True)
    return status


if __name__ == "__main__":
    if sys.argv[1] == "begin":
        sys.exit(begin(Path(sys.argv[2])))
    sys.exit(end(Path(sys.argv[2]), int(sys.argv[3])))
