"""A command of mdaug as a SLURM job, through submitit.

What submitit does here: it writes the lines of the batch script (#SBATCH and srun), calls sbatch, carries
`run_slurm_rank` with its strings to the tasks as a pickle, and tells each task its rank and its hosts there. What it
does not do: its checkpointing, requeueing, signal handlers, result pickles and job objects are unused, and its job
arrays, too: an array is one more line of the batch script. attempt.py, rank.py and slurm_query.py do these instead.

What the job needs lies in one folder on the shared file system: the resolved options, a copy of the packages, the batch
script, and the reports of the ranks. The batch script counts the attempt, starts one task per rank with srun, lets
`launch.attempt` judge how they ended, and requeues the job where it was only asked to stop.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from launch import preflight
from launch.job import REQUEUE, WORKERS, Job, log_path, logs_of, slurm_folder, worker_folder
from launch.rank import run_slurm_rank
from launch.slurm_profile import Profile
from mdaug import cli
from shards import provenance
from shards.errors import UserError

CODE = Path(__file__).resolve().parents[1]
PASSED_ON = ("cpus_per_task", "partition", "account", "qos", "constraint", "exclude")  # fields as sbatch names them
COPIED = ("launch", "mdaug", "shards", "deepspeed_configs")


@dataclass(frozen=True)
class Submission:
    """A command and how it is submitted."""

    command: str
    options: Any
    """Its options, all paths absolute; the job reads them back from a file."""
    profile: Profile
    nodes: int = 1
    ranks_per_node: int = 1
    gpus: bool = False
    """Whether each rank gets a GPU."""
    workers: int = 1
    """Tasks of a job array, each of nodes x ranks_per_node ranks; 1: no array."""
    after: str | None = None
    """Id of a job that must succeed first."""
    snapshot: bool = True
    """Whether the job runs a copy of the packages as they are now."""

    def __str__(self) -> str:
        """Return command and size for people."""
        array = f"job array of {self.workers} x " if self.workers > 1 else ""
        return f"mdaug {self.command}: {array}{self.nodes} node(s) x {self.ranks_per_node} rank(s)"

    @property
    def logs(self) -> Path:
        """The ranks' logs."""
        return logs_of(self.options.output_dir, cli.find(self.command).parallel)

    @property
    def folder(self) -> Path:
        """The record of the job."""
        return slurm_folder(self.options.output_dir, cli.find(self.command).parallel)

    @property
    def code(self) -> Path:
        """The packages that the job runs."""
        return self.folder / "code" if self.snapshot else CODE

    def code_paths(self) -> dict[str, Path]:
        """Return name -> path of what the ranks run and the nodes must find; a container has its own interpreter."""
        python = {} if self.profile.container else {"python": Path(self.profile.python or sys.executable)}
        return python if self.snapshot else python | {"checkout": CODE}


def require_plain_path(folder: Path) -> None:
    """Raise UserError for a folder whose name Slurm would not take as it is in the names of logs."""
    if "%" in str(folder) or "\\" in str(folder):
        raise UserError(
            f"{folder} has a % or a backslash in its name, which Slurm replaces in the names of its logs (%j is the id "
            "of the job); choose another --output_dir"
        )


def submit(submission: Submission) -> Job:
    """Queue a command and return its job; raises UserError where Slurm refuses it."""
    # All that the ranks read, and the record: before the job can start.
    folder = submission.folder
    argv = preflight.write_job_inputs(folder, submission.command, submission.options)
    if submission.snapshot:
        _copy_code(submission.code)
    job = Job(
        command=submission.command,
        output_dir=str(submission.options.output_dir),
        ranks=submission.nodes * submission.ranks_per_node,
        max_restarts=submission.profile.max_restarts,
        logs=str(submission.logs),
        submitted=time.time(),
    )
    _write(job, folder, submission.workers)

    # Hand it to Slurm.
    executor = _executor(submission)
    slurm_conf = os.environ.get("SLURM_CONF")
    try:
        with submitit.helpers.clean_env():
            if slurm_conf is not None:  # clean_env() takes away what sbatch needs to find its cluster
                os.environ["SLURM_CONF"] = slurm_conf
            submitted = executor.submit(run_slurm_rank, preflight.ENTRY, argv, str(submission.logs), str(folder))
    except submitit.core.utils.FailedJobError as error:
        shutil.rmtree(folder)
        raise UserError(f"Slurm refuses the job: {_reason_of_sbatch(error)}") from None

    # Add the id to the record. The tasks of an array look for the pickle under their own names, for up to a minute.
    job.job_id = submitted.job_id
    if submission.workers > 1:
        for worker in range(submission.workers):
            shutil.copyfile(submitted.paths.submitted_pickle, folder / f"{job.job_id}_{worker}_submitted.pkl")
    _write(job, folder, submission.workers)
    return job


def _write(job: Job, folder: Path, workers: int) -> None:
    """Write `job.json`: of an array for each of its tasks, which are started, counted and judged one by one."""
    if workers > 1:
        for worker in range(workers):
            task, logs = worker_folder(folder, worker), Path(job.logs) / f"worker-{worker}"
            task.mkdir(parents=True, exist_ok=True)
            dataclasses.replace(job, logs=str(logs)).write(task)
        job = dataclasses.replace(job, logs=str(Path(job.logs) / "worker-0"))  # the one that is shown
    job.write(folder)


def describe(submission: Submission, job: Job) -> str:
    """Return what to print about a job that was just submitted."""
    logs = submission.logs / "worker-0" if submission.workers > 1 else submission.logs
    others = "and the other ranks and workers" if submission.workers > 1 else "and the other ranks"
    return (
        f"launch: job {job.job_id} runs {submission}\n"
        f"launch: logs    {log_path(logs, 0)} ({others} beside it)\n"
        f"launch:         {submission.folder}/*_0_log.out (the batch script)\n"
        f"launch: state   python -m launch status {shlex.quote(job.output_dir)}\n"
        f"launch: follow  python -m launch logs {shlex.quote(job.output_dir)}\n"
        f"launch: cancel  python -m launch cancel {shlex.quote(job.output_dir)}"
    )


def script(submission: Submission) -> str:
    """Return the batch script that `submit` would hand to sbatch; touches nothing."""
    executor = _executor(submission)
    return executor._make_submission_file_text(executor._submitit_command_str, "0")


class _Executor(submitit.SlurmExecutor):
    """submitit's executor without the wckey that it always sends and that clusters with wckeys refuse."""

    @classmethod
    def affinity(cls) -> int:
        """Let the script be shown on machines without Slurm, too."""
        return 2

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        lines = super()._make_submission_file_text(command, uid).splitlines(keepends=True)
        return "".join(line for line in lines if "--wckey" not in line)


def _executor(submission: Submission) -> _Executor:
    profile, array = submission.profile, submission.workers > 1
    python = f"{profile.container} {shlex.quote(profile.python or sys.executable)}".strip()

    # A task of an array is a job of its own to squeue and scontrol, but SLURM_JOB_ID of one of them names them all.
    record = shlex.quote(str(submission.folder)) + (f"/{WORKERS}/$SLURM_ARRAY_TASK_ID" if array else "")
    job_id = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if array else "$SLURM_JOB_ID"
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in profile.environment.items()]
    before = [
        "unset PYTHONPATH PYTHONHOME PYTHONSTARTUP  # the copy of the packages is the working folder",
        *exports,
        *profile.setup,
        f"{python} -m launch.attempt begin {record} || exit $?",
    ]
    after = [
        f"{python} -m launch.attempt end {record} $?",
        "status=$?",
        # A job that was cancelled or has reached its limit is not RUNNING any more, and stays ended.
        f'if [ $status = {REQUEUE} ] && [ "$(squeue -h -j {job_id} -o %T)" = RUNNING ]; then',
        f"  scontrol requeue {job_id} && sleep 60",
        "fi",
        "exit $status",
    ]

    srun_args = ["--kill-on-bad-exit=1"]
    if profile.cpus_per_task is not None:  # Slurm 22.05 and later: srun does not inherit it from sbatch
        srun_args.append(f"--cpus-per-task={profile.cpus_per_task}")
    executor = _Executor(folder=submission.folder, python=python)
    executor.update_parameters(
        job_name=f"mdaug-{submission.command}",
        nodes=submission.nodes,
        ntasks_per_node=submission.ranks_per_node,
        gpus_per_node=submission.ranks_per_node if submission.gpus and profile.gres is None else None,
        time=profile.time_minutes,
        mem=None if profile.memory_gb is None else f"{profile.memory_gb}GB",
        **{name: getattr(profile, name) for name in PASSED_ON},
        dependency=None if submission.after is None else f"afterok:{submission.after}",
        signal_delay_s=profile.signal_delay_seconds,
        stderr_to_stdout=True,
        srun_args=srun_args,
        setup=before,
        teardown=after,
        additional_parameters={
            "chdir": str(submission.code),
            "requeue": True,
            **({} if submission.after is None else {"kill-on-invalid-dep": "yes"}),
            **({"gres": profile.gres} if submission.gpus and profile.gres is not None else {}),
            **({"array": f"0-{submission.workers - 1}"} if array else {}),
            **profile.additional_parameters,
        },
    )
    return executor


def _copy_code(target: Path) -> None:
    """Copy the packages, so that what is edited while the job waits changes nothing, and name their version."""
    for name in COPIED:
        if (CODE / name).is_dir():
            shutil.copytree(CODE / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    (target / provenance.VERSION_FILE).write_text(provenance.code_version() + "\n", encoding="utf-8")


def _reason_of_sbatch(error: Exception) -> str:
    """Return what sbatch printed, without submitit's frame around it."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line.partition("error: ")[2] or line for line in lines if line.startswith("sbatch: ")]
    if any("Invalid job array" in reason for reason in reasons):
        reasons.append("arrays here have fewer tasks (MaxArraySize, see scontrol show config); use fewer --workers")
    return "; ".join(reasons) or " ".join(str(error).split())
