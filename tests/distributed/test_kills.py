"""`kill -9` of a random rank at twenty random moments, saves among them: the run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdaug.models.vqvae import build_vqvae, save_vqvae
from shards import provenance
from tests.ranks import start_ranks
from tests.toy import toy_packed
from tests.trainings import tensors_in, untimed_records

KILLS, RANKS, BATCH, STEPS = 20, 2, 8, 100
PACE = 0.02  # seconds that a step takes at least; also how long after a step or the start of a save a kill may come
FLAGS = (
    "--image_size 16 --block_out_channels [8,16] --num_heads 2 --norm_num_groups 4 --layers_per_block 1 --window_size 4"
    f" --global_batch_size {BATCH} --batch_size 4 --train_samples {BATCH * STEPS} --lr 2e-3 --logging_steps 1"
    f" --num_workers 0 --early_stop_patience 0 --zero_stage 1 --save_samples {4 * BATCH} --val_samples {20 * BATCH}"
    " --ema_snapshots 4 --keep_last 2"
)


def command(argv: list[str], logs: Path) -> None:
    """Do what a rank of the launcher does: the command itself, its output to a log, and a report of how it ended."""
    from launch import job, rank
    from mdaug.training.ldm_task import LDMTask

    after_step = LDMTask.after_step

    def paced(*arguments: Any) -> None:
        time.sleep(PACE)  # on any machine the kills come before the last step
        after_step(*arguments)

    LDMTask.after_step = paced  # type: ignore[method-assign]
    number = int(os.environ["RANK"])
    rank._redirect(job.log_path(logs, number))
    os._exit(rank._run("mdaug.cli:run", argv, logs, number))


def moment(number: int, rng: np.random.Generator, output: Path, log: Path) -> Callable[[], bool]:
    """Return what is waited for before the kill: a moment of the start, a save that has begun, or some steps."""
    steps = 1 if number % 3 == 1 or number % 5 == 0 else int(rng.integers(1, 8))
    later = time.monotonic() + rng.uniform(0, 2.0)

    def reached() -> bool:
        return log.is_file() and log.read_text().count("grad norm") >= steps

    if number % 5 == 0:
        return lambda: time.monotonic() > later or reached()  # a fast machine may have started by then
    if number % 3 == 1:
        return lambda: reached() and bool(unfinished(output))
    return reached


def unfinished(output: Path) -> list[Path]:
    return [path for path in (output / "checkpoints").glob("samples-*") if not (path / "COMPLETE").exists()]


def kill_one(argv: list[str], output: Path, number: int, rng: np.random.Generator) -> str:
    """Start the run, kill a random rank, and return the error with which the other one went down."""
    logs = output.with_name(f"life-{number:02d}")
    logs.mkdir()
    ranks = start_ranks(RANKS, command, argv, logs)
    victim = int(rng.integers(RANKS))
    due = moment(number, rng, output, logs / "rank-00000.log")
    deadline = time.monotonic() + 120
    while not due():
        assert time.monotonic() < deadline, "waited in vain"
        assert all(rank.exitcode is None for rank in ranks), (logs / "rank-00000.log").read_text()
        time.sleep(0.001)
    time.sleep(rng.uniform(0, PACE))
    os.kill(ranks[victim].pid, signal.SIGKILL)
    ranks[victim].join(10)
    assert ranks[victim].exitcode == -signal.SIGKILL
    survivor, error = ranks[1 - victim], ""
    if number % 5:
        survivor.join(60)  # by itself: the next collective fails
        assert survivor.exitcode == 1, survivor.exitcode
        error = json.loads((logs / f"rank-{1 - victim:05d}.json").read_text())["error"]
    survivor.kill()  # while it starts, it waits for the other to appear; then the launcher's watch ends it
    survivor.join(10)
    return error


def test_run_killed_twenty_times_ends_with_the_same_bytes(tmp_path):
    packed = toy_packed(tmp_path / "packed")
    save_vqvae(
        build_vqvae(image_channels=1, latent_channels=4, num_codes=16, n_layers=1, base_channels=8),
        tmp_path / "vqvae", image_shape=[16, 16, 1], floor=[0],
        made_from={"images": provenance.read(packed, "images")["hash"]}, config={},
    )  # fmt: skip
    argv = ["train-ldm", "--data_dir", str(packed), "--vqvae_path", str(tmp_path / "vqvae"), *FLAGS.split()]
    (tmp_path / "logs").mkdir()
    undisturbed = tmp_path / "undisturbed"
    for rank in start_ranks(RANKS, command, [*argv, "--output_dir", str(undisturbed)], tmp_path / "logs"):
        rank.join(300)
        assert rank.exitcode == 0, (tmp_path / "logs/rank-00000.log").read_text()

    output, rng, caught = tmp_path / "run", np.random.default_rng(0), 0
    argv += ["--output_dir", str(output)]
    for number in range(KILLS):
        error = kill_one(argv, output, number, rng)
        assert "UserError" not in error
        caught += bool(unfinished(output))
    assert caught >= 3, "hardly any kill fell into a save"
    (tmp_path / "last").mkdir()
    for rank in start_ranks(RANKS, command, argv, tmp_path / "last"):
        rank.join(300)
        assert rank.exitcode == 0, (tmp_path / "last/rank-00000.log").read_text()

    assert not unfinished(output)
    assert untimed_records(output) == untimed_records(undisturbed)
    expected, found = dict(tensors_in(undisturbed)), dict(tensors_in(output))
    assert found.keys() == expected.keys()
    assert len(found) > 500
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
