"""A stop during a validation is heard there, the due checkpoint is older than it, and the run goes on as if nothing
had been."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks
from tests.toy import toy_packed
from tests.trainings import tensors_in, train_ldm, train_vqvae, untimed_records


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_packed(tmp_path_factory.mktemp("toy") / "packed")


def train_and_stop(packed: Path, output: Path, kind: str) -> list[bool]:
    """Train until the second validation, which is asked to stop in its first batch; return whether the checkpoint of
    its step was there by then."""
    from mdaug.training import loaders, vqvae_task
    from mdaug.training.vqvae_task import VQVAETask

    there: list[bool] = []
    validate, calls = VQVAETask.validate, iter(range(10))
    loaders.ASK_EVERY = 1

    def stopped(task, engine):
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM if kind == "term" else signal.SIGUSR2)
            there.append((output / "checkpoints" / f"samples-{2 * 64:012d}" / "engine").is_dir())
        return validate(task, engine)

    vqvae_task.VQVAETask.validate = stopped
    with pytest.raises(SystemExit):
        train_vqvae(packed, output, save_epochs=2)
    return there


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_stopped_in_a_validation_makes_up_for_it(packed, tmp_path, ranks):
    run_ranks(ranks, partial(train_vqvae, save_epochs=2), packed, tmp_path / "whole")
    (there, *_) = run_ranks(ranks, train_and_stop, packed, tmp_path / "stopped", "term")
    assert there == [True]
    state = json.loads(next((tmp_path / "stopped" / "checkpoints").glob("*/state.json")).read_text())
    assert (state["samples"], state["validated"]) == (128, 64)
    run_ranks(ranks, partial(train_vqvae, save_epochs=2), packed, tmp_path / "stopped")
    assert untimed_records(tmp_path / "stopped") == untimed_records(tmp_path / "whole")
    for (name, ours), (other, expected) in zip(
        tensors_in(tmp_path / "stopped"), tensors_in(tmp_path / "whole"), strict=True
    ):
        assert name == other
        assert torch.equal(ours, expected), name


def test_dropout_is_drawn_again_after_a_resume_and_by_another_number_of_ranks(packed, tmp_path):
    from tests.trainings import losses

    run_ranks(1, train_vqvae, packed, tmp_path / "vqvae")
    folders = (packed, tmp_path / "vqvae")
    train = partial(train_ldm, dropout=0.3, epochs=2)
    run_ranks(1, train, folders, tmp_path / "whole")
    run_ranks(1, train, folders, tmp_path / "stopped", 3)
    run_ranks(1, train, folders, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    run_ranks(2, train, folders, tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
