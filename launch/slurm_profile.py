"""Launch profiles: what a SLURM cluster needs to know about every job, one YAML file per cluster or partition."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdaug import config
from shards.validation import at_least


@dataclass
class Profile:
    """How jobs are submitted to one SLURM cluster; see configs/launch/ for two documented examples."""

    partition: str | None = None
    """Partition (queue). Default: the cluster's own default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have, such as `a100&80gb`."""
    exclude: str | None = None
    """Nodes to avoid, such as `node[13-14]`."""
    gres: str | None = None
    """GPUs of each node by name, such as `gpu:h100:8`, in place of --gpus-per-node, which some sites refuse."""
    time_minutes: int = 24 * 60
    """Time limit in minutes. A job that reaches it saves, is requeued and goes on."""
    memory_gb: int | None = None
    """Memory of each node in GB. Default: the cluster's own."""
    cpus_per_task: int | None = None
    """CPU cores of each rank: one for the rank and one for each data loading process. Default: the cluster's own."""
    signal_delay_seconds: int = 120
    """The job is told this many seconds before its time limit; at least twice what a checkpoint takes."""
    max_restarts: int = 100
    """After so many restarts (time limit, preemption, lost node) the job gives up."""
    setup: list[str] = field(default_factory=list)
    """Lines of bash that run on the first node before the ranks start, such as `module load cuda/12.4`."""
    container: str = ""
    """What to put before python in every rank, such as `apptainer exec --nv /images/mdaug.sif`."""
    python: str | None = None
    """The interpreter of the ranks. Default: the one that submits, which the nodes must see."""
    shared: list[str] = field(default_factory=list)
    """Folders that all nodes see though they look like a machine's own, below /tmp or in its memory."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the ranks, such as `NCCL_SOCKET_IFNAME: ib0`."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Further sbatch options by their long names, such as `reservation: radar`; `true` stands for a bare switch."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work; raises ValueError naming field, value and what is accepted."""
        at_least(self, 0, "signal_delay_seconds", "max_restarts")
        at_least(self, 1, "time_minutes", "memory_gb", "cpus_per_task")
        # The batch script quotes them, so that the shell would not expand them.
        self.python = None if self.python is None else os.path.expanduser(self.python)
        self.shared = [os.path.expanduser(folder) for folder in self.shared]
        if self.time_minutes * 60 <= self.signal_delay_seconds:
            raise ValueError(
                f"time_minutes={self.time_minutes} must be longer than signal_delay_seconds={self.signal_delay_seconds}"
            )


def load(path: Path | None) -> Profile:
    """Read a profile, or return the defaults where there is none; raises UserError for a key or value that is wrong."""
    flags = [] if path is None else ["--config", str(path)]
    return config.parse(Profile, flags, prog=f"profile {path}" if path else "profile")
