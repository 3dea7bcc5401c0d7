"""`mdaug evaluate` on a real Slurm: the ranks of a job or an array share the classifiers, and the last one reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.options import EvaluateConfig
from tests.slurm.jobs import batch_log, job_id, launch, profile, shell, wait_for, wait_for_end
from tests.toy import toy_packed, toy_synthetic

SETTINGS = {"n_real_per_class": [2], "synthetic_per_real": [1], "seeds": 2, "steps": 4, "image_size": 16, "workers": 1}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[EvaluateConfig, dict]:
    """What one rank alone finds."""
    folder = tmp_path_factory.mktemp("evaluate")
    packed = toy_packed(folder / "packed", size=16, train=96, val=80)
    synthetic = toy_synthetic(folder / "synthetic", packed, size=16)
    config = EvaluateConfig(packed, synthetic, folder / "alone", **SETTINGS)
    return config, evaluate(config)


def command(config: EvaluateConfig, together: Path, folder: Path, **where: int) -> list:
    """Return what the launcher is told to evaluate into `together` on Slurm."""
    folders = ["--data_dir", config.data_dir, "--synthetic_dir", config.synthetic_dir, "--output_dir", together]
    size, flags = ([word for name, value in of.items() for word in (f"--{name}", value)] for of in (where, SETTINGS))
    return ["evaluate", "--cluster", "slurm", *size, "--profile", profile(folder), "--", *folders, *flags]


def assert_same_figures(together: Path, expected: dict) -> None:
    metrics = json.loads((together / "metrics.json").read_text(encoding="utf-8"))
    for part in ("verdict", "targets", "usefulness", "fidelity", "kinematics", "memorization"):
        assert metrics[part] == expected[part], part
    assert (together / "report.html").is_file()


@pytest.mark.parametrize(
    "shared", [{"nodes": 2, "gpus_per_node": 2}, {"workers": 2, "gpus_per_node": 2}], ids=["job", "array"]
)
def test_the_last_of_four_ranks_reports_what_one_rank_alone_finds(alone, tmp_path, shared):
    config, expected = alone
    together = tmp_path / "together"
    done = launch(*command(config, together, tmp_path, **shared), wait=True)
    assert done.returncode == 0, done.stdout + done.stderr + batch_log(together)
    assert_same_figures(together, expected)
    said = {path: path.read_text(encoding="utf-8") for path in together.rglob("rank-*.log")}
    assert {path.parent.name for path in said} == ({"worker-0", "worker-1"} if "workers" in shared else {"logs"})
    assert len(said) == 4
    assert sum("this rank is done; the last rank" in text for text in said.values()) == 3
    assert "state     completed" in launch("status", together).stdout


def test_what_a_killed_task_of_an_array_left_undone_the_same_command_makes(alone, tmp_path):
    config, expected = alone
    together = tmp_path / "together"
    again = command(config, together, tmp_path, workers=2, gpus_per_node=1)
    assert launch(*again).returncode == 0
    wait_for((together / "logs/worker-1/rank-00000.log").is_file)
    shell("scancel", "--signal=KILL", f"{job_id(together)}_1")
    assert wait_for_end(together) == "CANCELLED"
    made = {path: path.stat().st_mtime_ns for path in (together / "results").iterdir()}
    assert made  # by the other task
    assert not (together / "report.html").exists()
    done = launch(*again, wait=True)
    assert done.returncode == 0, done.stdout + done.stderr + batch_log(together)
    assert_same_figures(together, expected)
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
