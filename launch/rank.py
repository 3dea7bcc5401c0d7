"""One rank: set its environment, run an entry point by name, leave a report for the launcher."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import psutil
import submitit

from launch import caches
from launch import job as jobs
from shards import atomic
from shards.errors import UserError, print_every_character
from shards.validation import WORKER, WORKERS


class _Stopped(SystemExit):
    pass


def run_rank(entry: str, argv: list[str], logs: str, reports: str, visible_devices: str | None, launcher: int) -> int:
    """Run one rank on this machine; submitit calls it, and only strings and numbers travel to it.

    Args:
        entry: "module:function"; the function takes the list `argv` and returns an exit status or None.
        argv: arguments of the entry point.
        logs: folder for `rank-00003.log`.
        reports: folder for the reports that the launcher reads.
        visible_devices: CUDA_VISIBLE_DEVICES of the launcher, which submitit's local executor overrides.
        launcher: process id of the launcher; when it is gone the rank stops itself.
    """
    job = submitit.JobEnvironment()
    rank = job.global_rank
    # A session of its own: Ctrl-C reaches the launcher alone, which passes it on once and in order.
    os.setsid()
    signal.signal(signal.SIGTERM, _stop)  # submitit's own handler ignores SIGTERM
    os.environ.update(
        **_number(rank, job.num_tasks),
        LOCAL_RANK=str(job.local_rank),
        LOCAL_WORLD_SIZE=str(job.num_tasks // job.num_nodes),
    )
    if visible_devices is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices
    logging.getLogger("submitit").setLevel(logging.WARNING)  # the log is the command's
    _redirect(jobs.log_path(Path(logs), rank))
    threading.Thread(target=_stop_without, args=(launcher,), daemon=True).start()
    jobs.started_path(Path(reports), rank).touch()
    return _run(entry, argv, Path(reports), rank)


def run_slurm_rank(entry: str, argv: list[str], logs: str, folder: str) -> int:
    """Run one rank of a SLURM job, or of one task of a job array; submitit calls it in every task that srun starts.

    Args:
        entry: "module:function", as in `run_rank`.
        argv: its arguments.
        logs: folder for `rank-00003.log`.
        folder: the folder of the job, for the reports of this attempt.
    """
    job = submitit.JobEnvironment()
    record, workers, ranks_before = Path(folder), 1, 0
    # The command sees ranks alone, numbered through all tasks of an array: it does the same with and without one.
    if (worker := os.environ.pop("SLURM_ARRAY_TASK_ID", None)) is not None:
        workers, ranks_before = len(jobs.tasks(record)), int(worker) * job.num_tasks
        record, logs = jobs.worker_folder(record, worker), f"{logs}/worker-{worker}"
        Path(logs).mkdir(exist_ok=True)
        os.environ.pop("SLURM_ARRAY_TASK_COUNT")

    # Signals and environment, as torch and the command expect them.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _stop)  # submitit would requeue the job before anything was saved
    os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    os.environ.update(
        **_number(ranks_before + job.global_rank, workers * job.num_tasks),
        LOCAL_RANK=str(local_device(job.local_rank)),
        LOCAL_WORLD_SIZE=str(job.num_tasks // job.num_nodes),
        MASTER_ADDR=job.hostnames[0],
        MASTER_PORT=str(master_port(int(job.raw_job_id), jobs.attempt_number())),
    )

    reports = jobs.reports_folder(record, jobs.attempt_number())
    jobs.started_path(reports, job.global_rank).touch()
    logging.getLogger("submitit").setLevel(logging.WARNING)
    print(f"{jobs.BEGINS}: {jobs.attempt_number()}", flush=True)  # the slurmd of a node writes below it
    _redirect(jobs.log_path(Path(logs), job.global_rank))
    caches.prepare()
    return _run(entry, argv, reports, job.global_rank)


def _number(rank: int, ranks: int) -> dict[str, str]:
    """Return what tells a rank its number: torch and the trainings by RANK, generate and evaluate by our own name."""
    return {"RANK": str(rank), "WORLD_SIZE": str(ranks), WORKER: str(rank), WORKERS: str(ranks)}


def local_device(local_rank: int) -> int:
    """Return the number of this rank's GPU: 0 where the cluster shows each task only its own."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return 0 if len(visible) == 1 and visible != [""] else local_rank


def master_port(job_id: int, attempt: int) -> int:
    """Return the port at which the ranks of a job meet, in [20000, 32000): below those that outgoing connections get.

    Jobs that share a node, and a requeued job and what is left of its last attempt, get different ones.
    """
    return 20000 + (7 * job_id + 1009 * attempt) % 12000


def _run(entry: str, argv: list[str], reports: Path, rank: int) -> int:
    """Call the entry point and leave a report."""
    status, error, stopped = _call(entry, argv)
    report = jobs.Report(rank=rank, status=status, error=error, stopped=stopped, time=time.time())
    sys.stdout.flush()
    atomic.write_text(jobs.report_path(reports, rank), json.dumps(asdict(report)))
    if status != 0:
        # At once: the clean-up at interpreter exit may wait for a peer that is gone.
        os._exit(status)
    return status


def _call(entry: str, argv: list[str]) -> tuple[int, str, bool]:
    """Return (status, error, stopped by SIGTERM) of the entry point."""
    module, _, function = entry.partition(":")
    try:
        status = getattr(importlib.import_module(module), function)(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2, f"error: {error}", False
    except SystemExit as stop:
        text = stop.code if isinstance(stop.code, str) else ""
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return status, text, isinstance(stop, _Stopped)
    except BaseException:
        traceback.print_exc()
        return 1, traceback.format_exc(), False
    return status or 0, "", False


def _stop(number: int, frame: object) -> None:
    raise _Stopped(128 + number)


def _stop_without(launcher: int) -> None:
    while psutil.pid_exists(launcher):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _redirect(log: Path) -> None:
    """Send everything this process and its children print into `log`; a rank has no input."""
    with open(log, "ab", buffering=0) as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    print_every_character()
