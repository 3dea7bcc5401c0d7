"""Jobs on a real Slurm: preempted, at their time limit, cancelled, on a lost node, and chained."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from launch import job, slurm_query
from tests.slurm.jobs import ROOT, batch_log, job_id, launch, profile, rank_pids, shell, wait_for, wait_for_end
from tests.toy import toy_packed

# Two ranks with a batch each of 8: the steps are the same on one rank with a batch of 16.
TINY = (
    "--image_size 16 --n_layers 2 --base_channels 8 --vq_num_embed 16 --global_batch_size 16 --batch_size 8"
    " --num_workers 0 --logging_steps 8 --early_stop_patience 0 --val_epochs 100"
).split()
EPOCHS = ["--epochs", "40", "--save_epochs", "2"]  # 160 steps
WEIGHTS = "last/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return toy_packed(tmp_path_factory.mktemp("slurm") / "packed")


def train(packed: Path, run: Path, *, flags=EPOCHS, nodes: int = 2, ranks: int = 1, wait: bool = False, **fields):
    run.parent.mkdir(parents=True, exist_ok=True)
    where = [
        "--cluster",
        "slurm",
        "--nodes",
        nodes,
        "--gpus_per_node",
        ranks,
        "--profile",
        profile(run.parent, **fields),
    ]
    return launch("train-vqvae", *where, "--", "--data_dir", packed, "--output_dir", run, *TINY, *flags, wait=wait)


def wait_for_checkpoint(run: Path) -> None:
    wait_for((run / "latest").is_file)


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.fixture(scope="module")
def undisturbed(slurm, packed, tmp_path_factory) -> Path:
    """A run on two nodes that nobody disturbs."""
    run = tmp_path_factory.mktemp("undisturbed") / "vqvae"
    done = train(packed, run, wait=True)
    assert done.returncode == 0, done.stdout + done.stderr + batch_log(run)
    assert "epoch   40.00" in done.stdout  # the log of rank 0 was shown up to its end
    return run


def test_two_nodes_of_two_ranks_train_from_a_copy_of_the_code(packed, tmp_path):
    run = tmp_path / "vqvae"
    flags = ["--epochs", "2", "--batch_size", "4"]
    submitted = train(packed, run, flags=flags, ranks=2, environment={"MDAUG_TEST": "it's here"})
    assert submitted.returncode == 0, submitted.stderr
    for word in (f"job {job_id(run)}", "rank-00000.log", f"launch cancel {run}", f"launch logs {run}"):
        assert word in submitted.stdout
    again = train(packed, run, flags=flags, ranks=2)
    assert again.returncode == 2
    assert "is in the queue already" in again.stderr
    wait_for_end(run)
    assert (run / WEIGHTS).is_file(), batch_log(run)
    assert "(4 x 4 rank(s) x 1 accumulation)" in (run / "logs/rank-00000.log").read_text()
    copy = run / "logs/slurm/code"
    assert (copy / "mdaug/training/loop.py").read_bytes() == (ROOT / "mdaug/training/loop.py").read_bytes()
    assert (copy / "CODE_VERSION").read_text().strip() in (run / "last/provenance.json").read_text()
    shown = launch("status", run).stdout
    assert "state     completed" in shown


@pytest.mark.parametrize("partition", ["normal", "patient"])
def test_preempted_by_a_higher_priority_and_requeued_the_run_ends_with_the_same_weights(
    partition, undisturbed, packed, tmp_path
):
    run = tmp_path / "vqvae"
    # patient gives a grace between SIGTERM and the end, and no checkpoint is due: only the signal makes the run save.
    flags = EPOCHS if partition == "normal" else ["--epochs", "40", "--save_epochs", "39"]
    assert train(packed, run, flags=flags, partition=partition).returncode == 0
    if partition == "normal":
        wait_for_checkpoint(run)
    else:
        wait_for(lambda: (run / "run.json").is_file() and "samples " in (run / "logs/rank-00000.log").read_text())
    shell("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    wait_for(lambda: slurm_query.state(job_id(run)) == "PENDING")
    assert not (run / WEIGHTS).exists()
    assert wait_for_end(run) == "COMPLETED", batch_log(run)
    assert [each["attempt"] for each in job.read_attempts(run / "logs/slurm")] == [0, 1]
    log = (run / "logs/rank-00000.log").read_text()
    assert "resumed from samples-" in log
    if partition == "patient":
        assert "asked to stop: saved at" in log
        assert "launch: asked to stop; to be continued" in batch_log(run)  # the batch script lived to requeue the job
    assert_same_weights(run, undisturbed)


def test_at_its_time_limit_the_run_saves_goes_on_and_ends_with_the_same_weights(undisturbed, packed, tmp_path):
    run = tmp_path / "vqvae"
    log = run / "logs/rank-00000.log"
    flags = ["--epochs", "40", "--save_epochs", "39"]  # out of reach: only the signal makes it save
    # Slurm looks at the clock every half minute, so the signal comes up to half a minute early; on a machine so busy
    # that training has not begun by then, that attempt ends without a save and the next one does it.
    assert train(packed, run, flags=flags, time_minutes=1, signal_delay_seconds=5).returncode == 0
    wait_for(lambda: log.is_file() and "samples " in log.read_text(), pause=0.05)
    for pid in rank_pids(run):  # the run is short; halted here, it is at work when the limit comes near: Slurm sends
        os.kill(pid, signal.SIGSTOP)  # SIGCONT with its signal
    assert wait_for_end(run) == "COMPLETED", batch_log(run)
    stopped = re.search(r"asked to stop: saved at (\d+) samples", log.read_text())
    assert stopped
    assert f"resumed from samples-{int(stopped[1]):012d}" in log.read_text()
    assert len(job.read_attempts(run / "logs/slurm")) >= 2
    assert_same_weights(run, undisturbed)


def test_told_to_stop_the_run_saves_goes_on_and_ends_with_the_same_weights(undisturbed, packed, tmp_path):
    run = tmp_path / "vqvae"
    # --save_epochs is out of reach: only the signal makes it save.
    flags = ["--epochs", "40", "--save_epochs", "39"]
    assert train(packed, run, flags=flags).returncode == 0
    wait_for((run / "run.json").is_file)
    wait_for(lambda: "samples " in (run / "logs/rank-00000.log").read_text())
    shell("scancel", "--signal=USR2", job_id(run))  # what Slurm sends signal_delay_seconds before the limit
    assert wait_for_end(run) == "COMPLETED", batch_log(run)
    log = (run / "logs/rank-00000.log").read_text()
    stopped = re.search(r"asked to stop: saved at (\d+) samples", log)
    assert stopped
    assert f"resumed from samples-{int(stopped[1]):012d}" in log
    assert_same_weights(run, undisturbed)


def test_cancelled_the_run_saves_stays_cancelled_and_goes_on_with_one_node(undisturbed, packed, tmp_path):
    run = tmp_path / "vqvae"
    assert train(packed, run).returncode == 0
    wait_for_checkpoint(run)
    assert "is cancelled" in launch("cancel", run).stdout
    assert wait_for_end(run) == "CANCELLED"
    assert "asked to stop: saved at" in (run / "logs/rank-00000.log").read_text()
    assert "state     cancelled" in launch("status", run).stdout
    # On one rank with the same global batch; sums of two halves differ from one sum in their last bits.
    done = train(packed, run, nodes=1, wait=True)
    assert done.returncode == 0, done.stdout + done.stderr + batch_log(run)
    assert "8 x 1 rank(s) x 2 accumulation" in done.stdout
    ours, theirs = load_file(run / WEIGHTS), load_file(undisturbed / WEIGHTS)
    assert all(abs(ours[name] - theirs[name]).max() < 1e-2 for name in ours)


def test_a_lost_node_requeues_the_run(undisturbed, packed, tmp_path):
    run = tmp_path / "vqvae"
    assert train(packed, run).returncode == 0
    wait_for_checkpoint(run)
    shell("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        wait_for(lambda: len(job.read_attempts(run / "logs/slurm")) == 2 or slurm_query.state(job_id(run)) == "PENDING")
    finally:  # fails where the node, whose daemon is alive, has come back by itself
        subprocess.run(["scontrol", "update", "NodeName=n2", "State=RESUME"], capture_output=True)
    assert wait_for_end(run) == "COMPLETED", batch_log(run)
    assert len(job.read_attempts(run / "logs/slurm")) == 2
    assert_same_weights(run, undisturbed)


def test_a_killed_rank_ends_the_job_and_the_waiting_launcher_says_so(packed, tmp_path):
    run = tmp_path / "vqvae"
    assert train(packed, run, flags=["--epochs", "100000"]).returncode == 0
    wait_for(
        lambda: (run / "logs/rank-00000.log").is_file() and "samples " in (run / "logs/rank-00000.log").read_text()
    )
    begun = time.monotonic()
    os.kill(rank_pids(run)[-1], signal.SIGKILL)
    assert wait_for_end(run) == "FAILED"
    assert time.monotonic() - begun < 60
    shown = launch("status", run).stdout
    assert "error     rank" in shown
    assert launch("logs", run).returncode == 0


def test_three_restarts_without_progress_stop_the_job(packed, tmp_path):
    run = tmp_path / "vqvae"
    assert train(packed, run, flags=["--epochs", "100000", "--save_epochs", "100000"]).returncode == 0
    folder = run / "logs/slurm"
    for restart in range(3):
        wait_for(lambda n=restart: len(job.read_attempts(folder)) == n + 1)
        shell("scontrol", "requeue", job_id(run))
    assert wait_for_end(run) == "FAILED"
    assert "3 restarts without progress" in launch("status", run).stdout
    assert len(job.read_attempts(folder)) == 4


def test_what_cannot_run_is_refused_before_it_is_queued(packed, tmp_path):
    run = tmp_path / "vqvae"
    refused = [
        (
            train(packed, run, partition="moon"),
            "partition moon does not exist here; the partitions are normal, patient, urgent",
        ),
        (train(tmp_path / "absent", run), f"data_dir={tmp_path}/absent does not exist"),
        (train(packed, run, flags=["--batch_size", "5"]), "does not divide into 2 rank(s) x batch_size=5"),
        (train(packed, run, ranks=3), "the nodes of this partition have 2 GPUs at most"),
        (train(packed, run, nodes=3), "nodes=3, but this partition has 2"),
        (train(packed, run, additional_parameters={"reservation": "none"}), "Slurm refuses the job: "),
        (train(packed, run, tyme_minutes=3), "tyme_minutes"),
    ]
    for done, said in refused:
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) <= 2, done.stderr  # with what sbatch says itself
    assert not (run / "logs/slurm").exists()
    assert not shell("squeue", "--noheader")


def test_all_stages_as_one_chain(tmp_path):
    out = tmp_path / "out"
    preset = {
        "simulate": {"images_per_class": 20, "image_size": 32, "workers": 1, "classes": ["walking", "drone"]},
        "pack": {"image_size": 16, "workers": 1},
        "train-vqvae": {"image_size": 16, "n_layers": 2, "base_channels": 8, "vq_num_embed": 16, "epochs": 1,
                        "batch_size": 4, "num_workers": 0},
        "encode": {"num_workers": 0},
        "train-ldm": {"image_size": 16, "block_out_channels": [8, 16], "num_heads": 2, "window_size": 2,
                      "norm_num_groups": 4, "epochs": 1, "batch_size": 4, "num_workers": 0, "num_inference_steps": 2,
                      "warmup_steps": 1},
        "generate": {"num_samples": 4, "num_inference_steps": 2},
        "evaluate": {"n_real_per_class": [2], "seeds": 1, "steps": 2, "image_size": 16},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(json.dumps(preset))
    submitted = subprocess.run(
        [sys.executable, "-m", "launch.pipeline", "--preset", tmp_path / "tiny.yaml", "--out", out, "--nodes", "2",
         "--gpus_per_node", "1", "--profile", profile(tmp_path), "--wait"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    logs = "".join(path.read_text() for path in out.glob("**/*_0_log.out"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr + logs
    assert (out / "evaluation/report.html").is_file()
    assert "2 rank(s)" in (out / "ldm/logs/rank-00000.log").read_text()


def test_a_failed_stage_takes_the_rest_of_the_chain_with_it(packed, tmp_path):
    run = tmp_path / "vqvae"
    first = shell("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=false")
    where = ["--cluster", "slurm", "--after", first, "--profile", profile(tmp_path), "--wait"]
    shell("scontrol", "release", first)
    done = launch("train-vqvae", *where, "--", "--data_dir", tmp_path / "made-by-the-first", "--output_dir", run, *TINY)
    assert done.returncode == 143
    assert "cancelled" in done.stdout
    assert not (run / "run.json").exists()


def test_a_job_whose_node_is_lost_and_that_may_not_be_requeued_says_so(packed, tmp_path):
    run = tmp_path / "vqvae"
    assert train(packed, run).returncode == 0
    shell("scontrol", "update", f"JobId={job_id(run)}", "Requeue=0")  # as a site may forbid it
    wait_for(lambda: job.read_attempts(run / "logs/slurm"))
    shell("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        assert wait_for_end(run) == "NODE_FAIL"
    finally:  # fails where the node, whose daemon is alive, has come back by itself
        subprocess.run(["scontrol", "update", "NodeName=n2", "State=RESUME"], capture_output=True)
    shown = launch("status", run).stdout
    assert "state     node_fail\nattempts  1" in shown
    assert "reason    a node was lost and the cluster did not requeue the job" in shown
    assert (
        slurm_query.state_by_log(run / "logs/slurm", slurm_query.GONE) == "NODE_FAIL"
    )  # by the log alone, once squeue has forgotten


def test_a_rank_that_takes_more_memory_than_the_job_has_ends_it_with_the_reason(packed, tmp_path):
    run, greedy = tmp_path / "vqvae", tmp_path / "greedy.sh"
    grow = "import time; x = [(bytes([1]) * (100 << 20), time.sleep(0.1)) for _ in range(24)]; time.sleep(60)"
    greedy.write_text(f'#!/bin/sh\n[ "$SLURM_PROCID" = 1 ] && exec {sys.executable} -c "{grow}"\nexec "$@"\n')
    greedy.chmod(0o755)
    assert train(packed, run, memory_gb=2, container=str(greedy)).returncode == 0
    assert wait_for_end(run) in ("FAILED", "OUT_OF_MEMORY")  # by version and settings of Slurm
    shown = launch("status", run).stdout
    assert "state     out_of_memory" in shown
    assert "raise memory_gb in the profile" in shown
