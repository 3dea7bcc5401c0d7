"""What a waiting job runs when the checkout is edited before it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from launch import job
from launch.slurm import COPIED
from shards.provenance import FILE_NAME
from tests.slurm.jobs import ROOT, profile, shell, wait_for


def submit(checkout: Path, out: Path, *flags: str) -> str:
    """Queue a job of a checkout, held, and return its id."""
    held = profile(checkout.parent, additional_parameters={"hold": True})
    where = ["--cluster", "slurm", "--profile", str(held), *flags]
    tiny = ["--classes", "[drone]", "--images_per_class", "2", "--image_size", "32", "--workers", "1"]
    subprocess.run(
        [sys.executable, "-m", "launch", "simulate", *where, "--", *tiny, "--output_dir", str(out)],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True,
    )  # fmt: skip
    return job.read_job(job.find(out)).job_id


def test_a_waiting_job_runs_the_packages_as_they_were_submitted_unless_told_otherwise(tmp_path):
    checkout, copied, direct = tmp_path / "checkout", tmp_path / "copied", tmp_path / "direct"
    for name in COPIED:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    jobs = [submit(checkout, copied), submit(checkout, direct, "--snapshot", "false")]
    for edited in ("mdaug/radar/simulate.py", "shards/provenance.py", "launch/rank.py"):
        with open(checkout / edited, "a", encoding="utf-8") as file:
            file.write('\nraise SystemExit("this was edited")\n')
    shell("scontrol", "release", ",".join(jobs))
    wait_for(lambda: not shell("squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING"))
    assert job.read_outcome(job.find(copied)) == (0, "done")
    assert (copied / FILE_NAME).is_file()
    assert not (direct / FILE_NAME).exists()
    assert "this was edited" in next(job.find(direct).glob("*_0_log.out")).read_text()
