"""The diffusion model on a real Slurm: trained by four ranks of two nodes, and sampled by a job array."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file

from launch.__main__ import main
from shards.provenance import FILE_NAME
from tests.slurm.jobs import batch_log, job_id, launch, profile, shell, wait_for, wait_for_end
from tests.tiny_pipeline import save_tiny
from tests.toy import toy_packed

WORKERS = 4


def test_the_diffusion_model_trains_on_two_nodes_of_two_ranks(tmp_path):
    packed, vqvae, run = toy_packed(tmp_path / "packed"), tmp_path / "vqvae", tmp_path / "ldm"
    common = ["--data_dir", str(packed), "--image_size", "16", "--batch_size", "4", "--num_workers", "0"]
    tiny = ["--n_layers", "2", "--base_channels", "8", "--vq_num_embed", "16", "--epochs", "1"]
    assert main(["train-vqvae", "--cluster", "inline", "--", *common, *tiny, "--output_dir", str(vqvae)]) == 0
    flags = ["--block_out_channels", "[16,32]", "--norm_num_groups", "8", "--num_heads", "2", "--window_size", "4",
             "--epochs", "2", "--zero_stage", "2", "--num_inference_steps", "2"]  # fmt: skip
    done = launch(
        "train-ldm", "--cluster", "slurm", "--nodes", 2, "--gpus_per_node", 2, "--profile", profile(tmp_path), "--",
        *common, *flags, "--vqvae_path", vqvae, "--output_dir", run, wait=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + batch_log(run)
    assert "(4 x 4 rank(s) x 1 accumulation)" in done.stdout
    weights = load_file(run / "pipeline/unet/diffusion_pytorch_model.safetensors")
    assert all(abs(value).max() < 1e3 for value in weights.values())


def generate(ldm: Path, out: Path, *flags: object, wait: bool = False) -> subprocess.CompletedProcess[str]:
    where = ["--cluster", "slurm", "--workers", WORKERS, "--gpus_per_node", 1, "--profile", profile(out.parent)]
    # Long enough to be hit: sixteen shards.
    asked = ["--num_samples", 160, "--samples_per_shard", 10, "--num_inference_steps", 125, "--scheduler_type", "ddpm"]
    return launch("generate", *where, "--", "--ldm_path", ldm, "--output_dir", out, *asked, *flags, wait=wait)


def test_a_job_array_with_a_killed_task_and_a_lost_node_is_complete_after_the_second_pass(tmp_path):
    ldm, out = save_tiny(tmp_path / "ldm"), tmp_path / "synthetic"
    assert generate(ldm, out).returncode == 0
    wait_for(lambda: len(list(out.glob("[0-9]*.json"))) >= 2)
    rank = f"^{sys.executable}.*submitit.core._submit {out}"
    killed = int(shell("pgrep", "--newest", "--full", rank))
    # The other node is lost, so that the batch script of the killed task lives to tell of it.
    lost = "n1" if b"SLURMD_NODENAME=n2" in Path(f"/proc/{killed}/environ").read_bytes() else "n2"
    os.kill(killed, 9)
    shell("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=test")
    try:  # the tasks of the lost node are requeued and would end well: here the first pass ends for them
        wait_for(lambda: "PENDING" in shell("squeue", "--noheader", "--array", "--format=%T"))
        shell("scancel", "--state=PENDING", job_id(out))
    finally:  # fails where the node, whose daemon is alive, has come back by itself
        subprocess.run(["scontrol", "update", f"NodeName={lost}", "State=RESUME"], capture_output=True)
    assert wait_for_end(out) != "COMPLETED"
    assert not (out / FILE_NAME).exists()
    shown = launch("status", out).stdout
    assert f"on 1 rank(s) in each of {WORKERS} workers" in shown
    assert "was killed from outside" in shown

    first_pass = {path: path.stat().st_mtime_ns for path in out.glob("[0-9]*.json")}
    assert 2 <= len(first_pass) < 16
    again = generate(ldm, out, wait=True)
    assert again.returncode == 0, again.stdout + again.stderr + batch_log(out)
    assert "found 160 = asked 160" in "".join(path.read_text() for path in out.glob("logs/worker-*/rank-*.log"))
    assert "state     completed" in launch("status", out).stdout
    assert all(path.stat().st_mtime_ns == written for path, written in first_pass.items())  # nothing was made twice
