"""A command of mdaug as a SLURM job, through submitit.

What the job needs lies in one folder on the shared file system: the resolved configuration, a copy of the packages,
the batch script, and the reports of the ranks. The batch script counts the attempt, starts one task per rank with
srun, lets `launch.attempt` judge how they ended, and requeues the job where it was only told to stop.
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

import submitit

from launch import attempt, preflight
from launch.attempt import Job
from launch.rank import run_slurm_rank
from launch.slurm_profile import Profile
from shards import provenance
from shards.errors import UserError

CODE = Path(__file__).resolve().parents[1]
COPIED = ("launch", "mdaug", "shards", "deepspeed_configs")


@dataclass(frozen=True)
class Place:
    """The folders of one job."""

    logs: Path
    """The ranks' logs."""

    @property
    def folder(self) -> Path:
        """What the launcher keeps of the job."""
        return self.logs / "slurm"


@dataclass(frozen=True)
class Size:
    """How much of a cluster a job takes."""

    nodes: int
    ranks_per_node: int
    gpus: bool
    """Whether each rank gets a GPU."""
    workers: int = 1
    """Tasks of a job array, each of nodes x ranks_per_node ranks; 1: no array."""

    def __str__(self) -> str:
        """Return it in words."""
        ranks = f"{self.nodes} node(s) x {self.ranks_per_node} rank(s)"
        return ranks if self.workers == 1 else f"job array of {self.workers} x {ranks}"


def place(output_dir: Path, in_run_folder: bool) -> Place:
    """Return where a job keeps its files: in the run folder, or beside a folder that holds nothing but data."""
    output_dir = output_dir.absolute()
    return Place(output_dir / "logs" if in_run_folder else output_dir.with_name(f"{output_dir.name}.logs"))


def code_paths(profile: Profile, snapshot: bool) -> dict[str, Path]:
    """Return name -> path of what the ranks run and the nodes must find; a container has an interpreter of its own."""
    python = {} if profile.container else {"python": Path(profile.python or sys.executable)}
    return python if snapshot else python | {"checkout": CODE}


def submit(
    command: str,
    config: object,
    where: Place,
    size: Size,
    *,
    profile: Profile,
    after: str | None,
    snapshot: bool,
) -> Job:
    """Queue a command and return its job.

    Args:
        command: a command of mdaug.
        config: its configuration, all paths absolute; the job reads it back from a file.
        where: the folders of the job, on a file system that the nodes share.
        size: nodes, ranks and array tasks.
        profile: what this cluster wants to know.
        after: id of a job that must succeed first.
        snapshot: whether the job runs a copy of the packages as they are now.

    Raises:
        UserError: where Slurm refuses the job.
    """
    folder = where.folder
    argv = preflight.prepare(folder, command, config)
    code = _copy_code(folder / "code") if snapshot else CODE
    job = Job(
        command=command,
        output_dir=str(getattr(config, "output_dir")),  # noqa: B009 - every configuration has one
        ranks=size.nodes * size.ranks_per_node,
        max_restarts=profile.max_restarts,
        logs=str(where.logs),
        submitted=time.time(),
    )
    _write(job, folder, size.workers)  # before the job can start
    executor = _executor(command, folder, code, size, profile, after)
    slurm_conf = os.environ.get("SLURM_CONF")
    try:
        with submitit.helpers.clean_env():
            if slurm_conf is not None:  # clean_env() takes away what sbatch needs to find its cluster
                os.environ["SLURM_CONF"] = slurm_conf
            submitted = executor.submit(run_slurm_rank, preflight.ENTRY, argv, str(where.logs), str(folder))
    except submitit.core.utils.FailedJobError as error:
        shutil.rmtree(folder)
        raise UserError(f"Slurm refuses the job: {_slurm_words(error)}") from None
    job.job_id = submitted.job_id
    if size.workers > 1:  # under the names by which the tasks look for it; they wait up to a minute
        for worker in range(size.workers):
            shutil.copyfile(submitted.paths.submitted_pickle, folder / f"{job.job_id}_{worker}_submitted.pkl")
    _write(job, folder, size.workers)
    return job


def _write(job: Job, folder: Path, workers: int) -> None:
    """Write `job.json`: of an array for each of its tasks, which are started, counted and judged one by one."""
    if workers > 1:
        for worker in range(workers):
            part, logs = attempt.of_worker(folder, worker), Path(job.logs) / f"worker-{worker}"
            part.mkdir(parents=True, exist_ok=True)
            dataclasses.replace(job, logs=str(logs)).write(part)
        job = dataclasses.replace(job, logs=str(Path(job.logs) / "worker-0"))  # the one that is shown
    job.write(folder)


def script(
    command: str,
    where: Place,
    size: Size,
    profile: Profile,
    after: str | None,
    snapshot: bool,
) -> str:
    """Return the batch script that `submit` would hand to sbatch; touches nothing."""
    code = where.folder / "code" if snapshot else CODE
    executor = _executor(command, where.folder, code, size, profile, after)
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


def _executor(
    command: str,
    folder: Path,
    code: Path,
    size: Size,
    profile: Profile,
    after: str | None,
) -> _Executor:
    python = f"{profile.container} {shlex.quote(profile.python or sys.executable)}".strip()
    # A task of an array is a job of its own to squeue and scontrol, but SLURM_JOB_ID of one of them names them all.
    array = size.workers > 1
    its_folder = shlex.quote(str(folder)) + (f"/{attempt.WORKERS}/$SLURM_ARRAY_TASK_ID" if array else "")
    its_job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if array else "$SLURM_JOB_ID"
    judge = f"{python} -m launch.attempt"
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in profile.environment.items()]
    srun_args = ["--kill-on-bad-exit=1"]
    if profile.cpus_per_task is not None:  # Slurm 22.05 and later: srun does not inherit it from sbatch
        srun_args.append(f"--cpus-per-task={profile.cpus_per_task}")
    executor = _Executor(folder=folder, python=python)
    executor.update_parameters(
        job_name=f"mdaug-{command}",
        nodes=size.nodes,
        ntasks_per_node=size.ranks_per_node,
        gpus_per_node=size.ranks_per_node if size.gpus else None,
        time=profile.time_minutes,
        mem=None if profile.memory_gb is None else f"{profile.memory_gb}GB",
        cpus_per_task=profile.cpus_per_task,
        partition=profile.partition,
        account=profile.account,
        qos=profile.qos,
        constraint=profile.constraint,
        exclude=profile.exclude,
        dependency=None if after is None else f"afterok:{after}",
        signal_delay_s=profile.signal_delay_seconds,
        stderr_to_stdout=True,
        srun_args=srun_args,
        setup=[
            "unset PYTHONPATH PYTHONHOME PYTHONSTARTUP  # the copy of the packages is the working folder",
            *exports,
            *profile.setup,
            f"{judge} begin {its_folder} || exit $?",
        ],
        teardown=[
            f"{judge} end {its_folder} $?",
            "status=$?",
            # A job that was cancelled or has reached its limit is not RUNNING any more, and stays ended.
            f'if [ $status = {attempt.REQUEUE} ] && [ "$(squeue -h -j {its_job} -o %T)" = RUNNING ]; then',
            f"  scontrol requeue {its_job} && sleep 60",
            "fi",
            "exit $status",
        ],
        additional_parameters={
            "chdir": str(code),
            "requeue": True,
            **({} if after is None else {"kill-on-invalid-dep": "yes"}),
            **({"array": f"0-{size.workers - 1}"} if array else {}),
            **profile.additional_parameters,
        },
    )
    return executor


def _copy_code(target: Path) -> Path:
    """Copy the packages, so that what is edited while the job waits changes nothing, and name their version."""
    shutil.rmtree(target, ignore_errors=True)
    for name in COPIED:
        if (CODE / name).is_dir():
            shutil.copytree(CODE / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    (target / provenance.VERSION_FILE).write_text(provenance.code_version() + "\n", encoding="utf-8")
    return target


def _slurm_words(error: Exception) -> str:
    """Return what sbatch said, without submitit's frame around it."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.partition("error: ")[2] or line for line in lines if line.startswith("sbatch: ")]
    return "; ".join(said) or " ".join(str(error).split())
