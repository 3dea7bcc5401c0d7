"""What Slurm says of a job: through squeue, and through sacct, which many clusters lack, what squeue has forgotten."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess

from shards.errors import UserError

ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED",
    "PREEMPTED",
}  # fmt: skip
GONE = "GONE"


def available() -> bool:
    """Return whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def state(job_id: str) -> str:
    """Return the state of a job as squeue names it.

    Once squeue has forgotten it (default: after 5 minutes): how it ended by sacct, or GONE where there are no accounts.
    A job array runs while any of its tasks does, and has completed when all have of which Slurm knows.
    Raises UserError when Slurm does not answer: nothing is known then, least of all that the job has ended.
    """
    asked = _ask(["squeue", "--noheader", "--states=all", "--array", f"--jobs={job_id}", "--format=%T"])
    if asked.returncode == 0:
        states = asked.stdout.split()
        return _of_all(states) if states else _accounted(job_id)
    if "Invalid job id" in asked.stderr:
        return _accounted(job_id)
    raise UserError(f"squeue does not answer: {asked.stderr.strip()}")


def _of_all(states: list[str]) -> str:
    return min(states, key=lambda each: (each == "COMPLETED", each in ENDED, each != "RUNNING"))


def _accounted(job_id: str) -> str:
    """Return how a job ended that squeue has forgotten, or GONE where sacct does not know or has missed it."""
    if shutil.which("sacct") is None:
        return GONE
    asked = _ask(["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job_id}", "--format=State"])
    states = [line.split()[0] for line in asked.stdout.splitlines() if line.strip()]  # "CANCELLED by 1000"
    return _of_all(states) if asked.returncode == 0 and states and set(states) <= ENDED else GONE


def reason(job_id: str) -> str:
    """Return why a job waits, as squeue names it, such as Priority, Resources or Dependency."""
    return _ask(["squeue", "--noheader", f"--jobs={job_id}", "--format=%r"]).stdout.strip()


def cancel(job_id: str) -> None:
    """Cancel a job; raises UserError where Slurm refuses."""
    done = _ask(["scancel", job_id])
    if done.returncode != 0:
        raise UserError(f"scancel {job_id}: {done.stderr.strip()}")


def nodes_of(partition: str | None) -> dict[int, int]:
    """Return number of GPUs -> number of nodes that have so many, of a partition (default: the default one).

    Raises UserError for a partition that is not there.
    """
    nodes: dict[int, int] = {}
    for gres, count in _of_partition(partition, "%G|%D"):
        gpus = sum(int(number) for number in re.findall(r"gpu(?::[A-Za-z][^:,(]*)?:(\d+)", gres))
        nodes[gpus] = nodes.get(gpus, 0) + int(count)
    return nodes


def tells_gpus() -> bool:
    """Return whether this Slurm knows of GPUs at all; where it does not, nodes without any may have some."""
    kinds = re.search(r"^GresTypes\s*=(.*)$", _ask(["scontrol", "show", "config"]).stdout, re.MULTILINE)
    return kinds is not None and "gpu" in kinds[1]


def only_here(partition: str | None) -> bool:
    """Return whether all nodes of a partition are this very machine; raises UserError as `nodes_of` does."""
    hosts = {host.partition(".")[0] for (host,) in _of_partition(partition, "%n")}
    return hosts == {socket.gethostname().partition(".")[0]}


def _of_partition(partition: str | None, columns: str) -> list[list[str]]:
    """Return rows of columns of sinfo for a partition (None: the default one); raises UserError where there is none."""
    asked = _ask(["sinfo", "--noheader", f"--format=%P|{columns}"])
    if asked.returncode != 0:
        raise UserError(f"sinfo does not answer: {asked.stderr.strip()}; --cluster local runs on this machine")
    rows = [line.strip().split("|") for line in asked.stdout.splitlines()]
    found = [row for name, *row in rows if (name.endswith("*") if partition is None else name.rstrip("*") == partition)]
    if not found:
        which = "the default partition" if partition is None else f"partition {partition}"
        names = sorted({name.rstrip("*") for name, *_ in rows})
        raise UserError(f"{which} does not exist here; the partitions are {', '.join(names)}")
    return found


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine; run this where Slurm is") from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer within 60 s")
