"""Which checkpoints stay: the newest, and apart from them the best model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.ranks import run_ranks
from tests.toy import toy_packed
from tests.trainings import train_vqvae


def train_ever_worse(packed: Path, output: Path) -> None:
    """Train with a checkpoint per epoch and a validation score that rises from the first one on."""
    from mdaug.training.vqvae_task import VQVAETask

    validate, scores = VQVAETask.validate, iter(range(1, 6))

    def rising(task, engine):
        return {**validate(task, engine), "loss": float(next(scores))}

    VQVAETask.validate = rising  # this process ends with the test's rank
    train_vqvae(packed, output, epochs=5, save_epochs=1, keep_last=2)


def test_old_checkpoints_go_and_the_newest_and_the_best_stay(tmp_path):
    packed, output = toy_packed(tmp_path / "packed"), tmp_path / "run"
    run_ranks(1, train_ever_worse, packed, output)
    folders = sorted(path for path in (output / "checkpoints").iterdir())
    assert [path.name for path in folders] == ["samples-000000000256", "samples-000000000320"]
    assert all((path / "COMPLETE").is_file() for path in folders)
    assert (output / "latest").read_text().strip() == folders[-1].name
    # The best model is of the first epoch, whose checkpoint is long gone.
    assert json.loads((folders[-1] / "state.json").read_text())["best_samples"] == 64
    best, last = (load_file(output / name / "diffusion_pytorch_model.safetensors") for name in ("best", "last"))
    assert any(np.abs(best[name] - last[name]).max() > 1e-4 for name in best)
