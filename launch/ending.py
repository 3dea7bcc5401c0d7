"""How a job ended that could not say so itself, in words, and what to change."""

from __future__ import annotations

from pathlib import Path

from launch import here, queue
from launch.attempt import BEGINS

# State -> what happened; what helps.
WORDS = {
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
    queue.GONE: "Slurm has forgotten the job, which left no outcome: it was killed together with its batch script, or "
    "cancelled while it waited",
}
# What the slurmd of a node writes into the log of its first rank, or of the batch script -> state; without accounts
# nothing else tells it for long.
SIGNS = {
    "oom-kill": "OUT_OF_MEMORY",
    "oom_kill": "OUT_OF_MEMORY",
    "exceeded memory limit": "OUT_OF_MEMORY",  # of a Slurm that watches memory itself, without cgroups
    "DUE TO TIME LIMIT": "TIMEOUT",
    "DUE TO NODE FAILURE": "NODE_FAIL",
    "DUE TO PREEMPTION": "PREEMPTED",
}
VAGUE = {"FAILED", "CANCELLED", queue.GONE}


def judged(folder: Path, state: str) -> str:
    """Return the state of an ended job, by what the last attempt printed, where Slurm knows no better."""
    if state not in VAGUE:
        return state
    for log in sorted(folder.glob("*_log.out")):
        last = log.read_text(encoding="utf-8", errors="replace").rpartition(BEGINS)[2]
        for sign, better in SIGNS.items():
            if sign in last:
                return better
    return state


def explained(folder: Path, state: str) -> str | None:
    """Return what such an end means and what to change; None for a state that needs no words."""
    if state not in WORDS:
        return here.WORDS.get(state)
    log = f"; see {folder}/*_0_log.out" if state in VAGUE else ""
    return f"{WORDS[state]}{log}; the same command continues from what was saved"
