"""The tests here run on a real Slurm: one that is up with the nodes n1 and n2, or one that they can start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.jobs import shell, wait_for

CLUSTER = Path(__file__).with_name("cluster.sh")


def _is_up() -> bool:
    """Whether the Slurm of cluster.sh is up; the jobs of any other one are not ours to cancel."""
    return subprocess.run([str(CLUSTER), "ours"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """Start the Slurm of two nodes unless it is up already, and stop it only if it was started here."""
    if _is_up():
        yield
        return
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.skip("Slurm is not installed here (Debian, Ubuntu: apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root; run 'make slurm-up' as root first")
    started = subprocess.run([str(CLUSTER), "up"], capture_output=True, text=True)
    if "belongs to another Slurm" in started.stderr:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stdout + started.stderr
    yield
    subprocess.run([str(CLUSTER), "down"], check=True, capture_output=True)


@pytest.fixture(autouse=True)
def _end_all_jobs(slurm: None) -> Iterator[None]:
    yield
    subprocess.run(["scancel", "--user=root"], check=True)
    wait_for(lambda: not shell("squeue", "--noheader"), 60)
