"""What the tests here say to Slurm and to the launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch import job, slurm_query

ROOT = Path(__file__).parents[2]


def shell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def profile(folder: Path, **fields: object) -> Path:
    path = folder / "profile.yaml"
    path.write_text(json.dumps({"time_minutes": 30, "signal_delay_seconds": 20, **fields}))
    return path


def launch(*argv: object, wait: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the launcher from the checkout, as a user would."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "launch", *map(str, argv)]
    if wait:
        command.insert(4, "--wait")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def job_id(run: Path) -> str:
    return job.read_job(run / "logs/slurm").job_id


def wait_for(condition: Callable[[], object], seconds: float = 300, pause: float = 0.5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)


def wait_for_end(run: Path) -> str:
    wait_for(lambda: slurm_query.state(job_id(run)) in slurm_query.ENDED | {slurm_query.GONE})
    return slurm_query.state(job_id(run))


def rank_pids(run: Path) -> list[int]:
    """Return the processes of the ranks of a run."""
    return [int(pid) for pid in shell("pgrep", "--full", f"^{sys.executable}.*submitit.core._submit {run}").split()]


def batch_log(run: Path) -> str:
    return "".join(path.read_text() for path in run.glob("logs/slurm/*_0_log.out"))
