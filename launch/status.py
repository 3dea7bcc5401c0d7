"""`python -m launch status|logs|cancel RUN_DIR`: how a job stands."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from launch import attempt, slurm_query
from launch import local_job as here
from launch.attempt import Job, shards
from launch.local import LogStream
from launch.rank import log_path
from launch.slurm import Size, place
from shards import provenance
from shards.errors import UserError
from shards.progress import LINE

POLL = 2.0
PATIENCE = 300.0  # seconds that a controller which restarts may leave us without an answer
BY_SIGNAL = 143  # status of a job that was cancelled
ENDED = slurm_query.ENDED | {slurm_query.GONE} | here.ENDED
FINISHED = ("FINISHED", provenance.FILE_NAME)  # what a command writes last


def records(run_dir: Path) -> list[Path]:
    """Return what launchers have kept of a run folder, the last one last."""
    places = [place(run_dir, in_run_folder).folder for in_run_folder in (True, False)] + [here.folder(run_dir)]
    there = [folder for folder in places if (folder / attempt.JOB_FILE).is_file()]
    return sorted(there, key=lambda folder: attempt.read_job(folder).submitted)


def find(run_dir: Path) -> Path:
    """Return the folder of the last job, or ranks of a machine, of a run folder; raises UserError where none was."""
    there = records(run_dir)
    if not there:
        raise UserError(
            f"{run_dir}: no SLURM job was submitted for this folder and no ranks were started; a command that runs "
            "in a terminal alone shows its log there, and Ctrl-C there lets it save and stop"
        )
    return there[-1]


def require_idle(run_dir: Path) -> None:
    """Raise UserError where a job, or ranks of this machine, are at work in a run folder or are going to be."""
    for folder in records(run_dir):
        job = attempt.read_job(folder)
        if not (job.pid or slurm_query.available()):
            continue  # the folder comes from a cluster
        if _state(folder, job) not in ENDED:
            where = "runs" if job.pid else "is in the queue"
            raise UserError(
                f"{job} of this folder {where} already; 'python -m launch status' tells how it stands, "
                "'python -m launch cancel' ends it"
            )


def _state(folder: Path, job: Job) -> str:
    return here.state(folder, job) if job.pid else slurm_query.state(job.job_id)


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
                return _status(folder, state)
            time.sleep(POLL)
    except KeyboardInterrupt:
        print(f"\nlaunch: {job} goes on; python -m launch cancel {job.output_dir} ends it", file=sys.stderr)
        return 130


def _status(folder: Path, state: str) -> int:
    """Return the status of an ended job and say why where it is not 0."""
    told = attempt.read_outcome(folder)
    state = slurm_query.judged(folder, state)
    why = slurm_query.explained(folder, state)
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
    """Print state, attempts, progress, time left and last error of what runs, or ran last, in a run folder."""
    if not records(run_dir):
        return _without_a_record(run_dir)
    folder = find(run_dir)
    job = attempt.read_job(folder)
    state = _state(folder, job)
    told = attempt.read_outcome(folder)
    if state == "COMPLETED" or (
        state == slurm_query.GONE and told is not None
    ):  # squeue forgets, an array task by task
        state = "COMPLETED" if told is not None and told[0] == 0 else "FAILED"
    state = slurm_query.judged(folder, state)
    waiting = f" ({slurm_query.reason(job.job_id)})" if state == "PENDING" else ""
    workers = len(attempt.parts(folder))
    array = f" in each of {workers} workers" if workers > 1 else ""
    name = f"process   {job.pid} on {job.host}" if job.pid else f"job       {job.job_id}"
    print(f"{name}: mdaug {job.command} on {job.ranks} rank(s){array}")
    print(f"state     {state.lower()}{waiting}")
    if not job.pid:
        begun = attempt.attempts(folder)
        print(f"attempts  {len(begun)}" + (f", the last from {begun[-1]['progress']}" if begun else ""))
    since = job.submitted if job.pid else attempt.since(folder)
    if (done := progress_of(job, since if state == "RUNNING" else None)) is not None:
        print(f"progress  {done}")
    if told is not None and told[0] not in (0, attempt.REQUEUE) and state != here.STOPPED:
        print(f"error     {told[1]}")
    if (why := slurm_query.explained(folder, state)) is not None:
        print(f"reason    {why}")
    return 0


def _without_a_record(run_dir: Path) -> int:
    """Print how a folder stands in which a command worked alone, in a terminal, without ranks and without a job."""
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} does not exist; name the output folder of a command")
    done = next((run_dir / name for name in FINISHED if (run_dir / name).is_file()), None)
    changed = time.time() - max(path.stat().st_mtime for path in (run_dir, *run_dir.iterdir()))
    print(f"state     {'finished' if done else 'not finished'}; no launcher has a record of it, so one process in a "
          f"terminal works here, or none; last change {duration(changed)} ago")  # fmt: skip
    alone = Job("", str(run_dir), ranks=1, max_restarts=0, logs=str(run_dir / "logs"))
    if (progress := progress_of(alone, None)) is not None:
        print(f"progress  {progress}")
    return 0


def logs(run_dir: Path) -> int:
    """Print the log of rank 0 (before it exists: that of the batch script), then follow it until the job has ended.

    Of a job that has failed, the earliest error of any rank comes first.
    """
    folder = find(run_dir)
    job = attempt.read_job(folder)
    path = log_path(Path(job.logs), 0)
    ended = _state(folder, job) in ENDED
    if not path.is_file() and ended:
        path = min(folder.glob("*_0_log.out"), default=path)
    told = attempt.read_outcome(folder)
    if ended and told is not None and told[0] not in (0, attempt.REQUEUE):
        print(f"launch: {told[1]}\n")
    if path.is_file():
        sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
        sys.stdout.flush()
    return 0 if ended else wait(folder)


def cancel(run_dir: Path) -> int:
    """Cancel what runs in a run folder; its ranks save first, as far as the cluster gives them time (KillWait)."""
    folder = find(run_dir)
    job = attempt.read_job(folder)
    state = _state(folder, job)
    if state == here.ELSEWHERE:
        raise UserError(f"{job} can be stopped on that machine only")
    if state in ENDED:
        print(f"launch: {job} has ended already")
        return 0
    if job.pid:
        here.stop(job)
    else:
        slurm_query.cancel(job.job_id)
    done = "is told to stop, and its ranks save" if job.pid else "is cancelled"
    print(f"launch: {job} {done}; the same command continues from the last checkpoint")
    return 0


TAIL = 1 << 16  # bytes of a log in which its last line of progress is looked for


def progress_of(job: Job, since: float | None) -> str | None:
    """Return how far a job is and what time is left, as far as that can be told; None before there is anything.

    Args:
        job: the job.
        since: when its ranks began, while they run (seconds since the epoch). None: nothing runs, no time is left.
    """
    output = Path(job.output_dir)
    if (record := _last_record(output / "metrics.jsonl")) is not None:
        text = (
            f"{record['samples']:,} samples, epoch {record['epoch']:.2f}, loss {record['loss']:.4g}, "
            f"{record['img_s']:.1f} img/s"
        )
        return text if since is None else f"{text}, {duration(record['eta_s'])} left"
    made = shards(output)
    total = _total(output / "plan.json")
    text = f"{len(made)} of {total} shards ({len(made) / total:.0%})" if total else attempt.progress(output)
    if total and since is None:
        return text
    if total and since is not None and (fresh := sum(path.stat().st_mtime > since for path in made)):
        return f"{text}, {duration((total - len(made)) * (time.time() - since) / fresh)} left"
    said = _said_by_rank_0(log_path(Path(job.logs), 0), running=since is not None)
    return "; ".join(part for part in (text, said) if part and part != attempt.NOTHING) or None


def _total(plan: Path) -> int | None:
    """Return the number of shards that `encode` or `generate` have planned."""
    if not plan.is_file():
        return None
    wanted = json.loads(plan.read_text(encoding="utf-8"))
    if "counts" in wanted:
        return -(-sum(wanted["counts"].values()) // wanted["samples_per_shard"])
    return wanted.get("shards")


def _said_by_rank_0(log: Path, *, running: bool) -> str | None:
    """Return the last line of `shards.progress` in a log, with the time left at its rate if the rank runs."""
    if not log.is_file():
        return None
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = LINE.findall(file.read().decode(errors="replace"))
    if not lines:
        return None
    name, count, total, unit, rate = lines[-1]
    left = (int(total) - int(count)) / float(rate) if float(rate) else 0.0
    return f"rank 0: {name} {count} of {total} {unit}" + (f", {duration(left)} left" if running and left else "")


def _last_record(path: Path) -> dict | None:
    """Return the last training record of a metrics.jsonl, or None."""
    if not path.is_file():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line that is being written
            continue
        if "eta_s" in record and "loss" in record:
            return record
    return None


def duration(seconds: float) -> str:
    """Return a time as text, such as 1 d 01:01:01."""
    days = f"{int(seconds // 86400)} d " if seconds >= 86400 else ""
    return days + time.strftime("%H:%M:%S", time.gmtime(seconds % 86400))
