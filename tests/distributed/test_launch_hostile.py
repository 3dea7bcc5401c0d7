"""No compiler, no ninja, no network, no home that can be written to: every stage runs all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import stages

ROOT = Path(__file__).parents[2]

TINY = {
    "simulate": "--images_per_class 20 --image_size 64 --workers 1 --classes [walking,drone]",
    "pack": "--image_size 32 --workers 1",
    "train-vqvae": "--image_size 32 --n_layers 2 --base_channels 8 --vq_num_embed 16 --epochs 1 --batch_size 8"
    " --num_workers 0",
    "encode": "--num_workers 0",
    "train-ldm": "--image_size 32 --block_out_channels [16,32] --num_heads 2 --window_size 4 --norm_num_groups 8"
    " --epochs 1 --batch_size 8 --num_workers 0 --num_inference_steps 2 --warmup_steps 1",
    "generate": "--num_samples 4 --num_inference_steps 2 --grid",
    "evaluate": "--n_real_per_class [2] --seeds 1 --steps 2 --image_size 32",
}

CHAIN = """
import sys
from launch.__main__ import main
for argv in {commands!r}:
    status = main(argv)
    if status:
        sys.exit(status)
"""


@pytest.fixture
def hostile(tmp_path) -> dict[str, str]:
    """An environment in which nothing but Python itself is at hand, and no cache can be made below home."""
    (tmp_path / "bin").mkdir()
    nowhere = "http://127.0.0.1:9"  # the discard port: whatever tries the network fails
    return {
        "PATH": str(tmp_path / "bin"),
        "HOME": "/proc/home",  # not even root can make a folder here, as in a read-only home
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "TMPDIR": str(tmp_path),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="/proc stands for the home that cannot be written to")
def test_every_stage_runs_on_a_hostile_machine(hostile, tmp_path):
    out = tmp_path / "out"
    commands = [
        [command, "--out", str(out), "--gpus_per_node", "1", "--", *TINY[command].split()] for command in stages.CHAIN
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHAIN.format(commands=commands)],
        env=hostile,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (out / "synthetic/grid.png").is_file()
    assert (out / "evaluation/report.html").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc stands for the home that cannot be written to")
def test_two_ranks_train_on_a_hostile_machine(hostile, tmp_path):
    out = tmp_path / "out"
    ranks = {"simulate": "1", "pack": "1", "train-vqvae": "2"}
    commands = [
        [command, "--out", str(out), "--gpus_per_node", n, "--", *TINY[command].split()] for command, n in ranks.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHAIN.format(commands=commands)],
        env=hostile,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (out / "vqvae/best/provenance.json").is_file()
    assert "2 rank(s)" in (out / "vqvae/logs/rank-00000.log").read_text()
