"""Questions to Slurm: nodes, GPUs, states, and why a job ended."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
from pathlib import Path

from launch.job import BEGINS, CONTINUES
from shards.errors import UserError

ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED",
    "PREEMPTED",
}  # fmt: skip
GONE = "GONE"


class NoAnswer(UserError):
    """Slurm's programs are here, but the cluster does not answer, or is not configured."""


def available() -> bool:
    """Return whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def state(job_id: str) -> str:
    """Return the state of a job as squeue names it.

    Once squeue has forgotten it (default: after 5 minutes): how it ended by sacct, or GONE where there are no accounts.
    A job array runs while any of its tasks does, and has completed when all have of which Slurm knows.
    Raises UserError when Slurm does not answer: nothing is known then, least of all that the job has ended.
    """
    answer = _ask(["squeue", "--noheader", "--states=all", "--array", f"--jobs={job_id}", "--format=%T"])
    if answer.returncode == 0:
        states = answer.stdout.split()
        return _state_of_array(states) if states else _accounted_state(job_id)
    if "Invalid job id" in answer.stderr:
        return _accounted_state(job_id)
    raise NoAnswer(f"squeue does not answer: {_line(answer.stderr)}")


def _state_of_array(states: list[str]) -> str:
    return min(states, key=lambda each: (each == "COMPLETED", each in ENDED, each != "RUNNING"))


def _accounted_state(job_id: str) -> str:
    """Return how a job ended that squeue has forgotten, or GONE where sacct does not know or has missed it."""
    if shutil.which("sacct") is None:
        return GONE
    answer = _ask(["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job_id}", "--format=State"])
    states = [line.split()[0] for line in answer.stdout.splitlines() if line.strip()]  # "CANCELLED by 1000"
    return _state_of_array(states) if answer.returncode == 0 and states and set(states) <= ENDED else GONE


def reason(job_id: str) -> str:
    """Return why a job waits, as squeue names it, such as Priority, Resources or Dependency."""
    return _ask(["squeue", "--noheader", f"--jobs={job_id}", "--format=%r"]).stdout.strip()


def cancel(job_id: str) -> None:
    """Cancel a job; raises UserError where Slurm refuses."""
    answer = _ask(["scancel", job_id])
    if answer.returncode != 0:
        raise UserError(f"scancel {job_id}: {_line(answer.stderr)}")


def nodes_of(partition: str | None) -> dict[int, int]:
    """Return number of GPUs -> number of nodes with that many, of a partition (default: the default one).

    Raises UserError for a partition that does not exist.
    """
    nodes: dict[int, int] = {}
    for gres, count in _sinfo(partition, "%G|%D"):
        gpus = sum(int(number) for number in re.findall(r"gpu(?::[A-Za-z][^:,(]*)?:(\d+)", gres))
        nodes[gpus] = nodes.get(gpus, 0) + int(count)
    return nodes


def reports_gpus() -> bool:
    """Return whether this Slurm knows of GPUs at all; where it does not, nodes without any may have some."""
    kinds = re.search(r"^GresTypes\s*=(.*)$", _ask(["scontrol", "show", "config"]).stdout, re.MULTILINE)
    return kinds is not None and "gpu" in kinds[1]


def largest_array() -> float:
    """Return the most tasks that a job array may have here, with the numbers 0, 1, 2, ...; infinite if not known."""
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]).stdout, re.MULTILINE)
    return int(size[1]) if size is not None else math.inf


def single_machine(partition: str | None) -> bool:
    """Return whether all nodes of a partition are this very machine; raises UserError as `nodes_of` does."""
    hosts = {host.partition(".")[0] for (host,) in _sinfo(partition, "%n")}
    return hosts == {socket.gethostname().partition(".")[0]}


def _sinfo(partition: str | None, columns: str) -> list[list[str]]:
    """Return rows of columns of sinfo for a partition (None: the default); raises UserError if it does not exist."""
    answer = _ask(["sinfo", "--noheader", f"--format=%P|{columns}"])
    if answer.returncode != 0:
        here = "--cluster local (make: CLUSTER=local) runs on this machine"
        raise NoAnswer(f"sinfo does not answer: {_line(answer.stderr)}; {here}")
    rows = [line.strip().split("|") for line in answer.stdout.splitlines()]
    chosen = [
        row for name, *row in rows if (name.endswith("*") if partition is None else name.rstrip("*") == partition)
    ]
    if not chosen:
        which = "the default partition" if partition is None else f"partition {partition}"
        names = sorted({name.rstrip("*") for name, *_ in rows})
        raise UserError(f"{which} does not exist here; the partitions are {', '.join(names)}")
    return chosen


def _line(text: str) -> str:
    return "; ".join(text.split("\n")).strip("; ")


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]} is not on this machine; run this where Slurm is") from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer within 60 s")


# State -> what happened; what helps.
EXPLANATIONS = {
    "OUT_OF_MEMORY": "a process took more main memory than the job has; raise memory_gb in the profile, or lower "
    "--num_workers or --batch_size",
    "TIMEOUT": "the time limit came before all ranks had saved; raise signal_delay_seconds in the profile, to twice "
    "what a checkpoint takes, or time_minutes",
    "NODE_FAIL": "a node was lost and the cluster did not requeue the job; the profile can exclude a bad node",
    "BOOT_FAIL": "a node did not start; the profile can exclude it",
    "PREEMPTED": "a job of higher priority took the nodes and the cluster did not requeue this one; another partition "
    "or qos in the profile may be safe from that",
    "DEADLINE": "the deadline of the job has passed; leave it out of additional_parameters in the profile",
    "CANCELLED": "somebody cancelled it, or a job that it waited for has failed",
    GONE: "Slurm has forgotten the job, which left no outcome: it was killed together with its batch script, or "
    "cancelled while it waited",
}
# What the slurmd of a node writes into the log of its first rank, or of the batch script -> state; without accounting
# nothing else shows it for long.
SIGNS = {
    "oom-kill": "OUT_OF_MEMORY",
    "oom_kill": "OUT_OF_MEMORY",
    "exceeded memory limit": "OUT_OF_MEMORY",  # of a Slurm that watches memory itself, without cgroups
    "DUE TO TIME LIMIT": "TIMEOUT",
    "DUE TO NODE FAILURE": "NODE_FAIL",
    "DUE TO PREEMPTION": "PREEMPTED",
}
VAGUE = {"FAILED", "CANCELLED", GONE}


def state_by_log(folder: Path, state: str) -> str:
    """Return the state of an ended job, by what the last attempt printed where Slurm does not know it."""
    if state not in VAGUE:
        return state
    for log in sorted(folder.glob("*_log.out")):
        last = log.read_text(encoding="utf-8", errors="replace").rpartition(BEGINS)[2]
        for sign, better in SIGNS.items():
            if sign in last:
                return better
    return state


def explain_end(folder: Path, state: str) -> str | None:
    """Explain how a job died that left no outcome, and what to change; None for a state that needs no explanation."""
    if state not in EXPLANATIONS:
        return None
    log = f"; see {folder}/*_0_log.out" if state in VAGUE else ""
    return f"{EXPLANATIONS[state]}{log}; {CONTINUES}"
