"""`--train_minutes`: the length is found once, alike on all ranks, and leaves no trace in what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mdaug import config
from mdaug.training.options_vqvae import VQVAEConfig
from tests.ranks import run_ranks
from tests.toy import toy_packed
from tests.trainings import averaged, losses, train_ldm, train_vqvae, weights

MINUTES = {"train_minutes": 0.05, "epochs": 10**6}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_packed(tmp_path_factory.mktemp("toy") / "packed")


def as_if_at(samples_per_s: float) -> None:
    """Measure, and go on as if another speed had been found: that of this machine depends on what else it does."""
    from mdaug.training import length

    found = length.lengths
    length.lengths = lambda seconds, rate, passes, plan: found(2.0, samples_per_s, passes, plan)


def vqvae(packed: Path, output: Path, stop_after: int | None = None, changes: dict | None = None) -> None:
    as_if_at(60.0 if stop_after is not None else 80.0)
    train_vqvae(packed, output, stop_after=stop_after, **(changes or MINUTES))


def ldm(folders: tuple[Path, Path], output: Path, changes: dict) -> None:
    as_if_at(80.0)
    train_ldm(folders, output, **changes)


def length(run: Path) -> dict:
    return json.loads((run / "length.json").read_text())


def given(run: Path) -> dict:
    return {name: value for name, value in length(run).items() if name != "samples_per_s"}


def test_a_run_of_minutes_is_the_run_of_its_samples_also_when_it_is_interrupted(packed, tmp_path):
    run_ranks(2, vqvae, packed, tmp_path / "run", 3)
    found = length(tmp_path / "run")
    run_ranks(1, vqvae, packed, tmp_path / "run")  # on other ranks, of another speed
    assert length(tmp_path / "run") == found
    samples = [json.loads(line)["samples"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(samples) == found["train_samples"]

    run_ranks(1, vqvae, packed, tmp_path / "again", None, given(tmp_path / "run"))
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "run"), rel=1e-3)


def test_measuring_leaves_no_trace(packed, tmp_path):
    run_ranks(1, vqvae, packed, tmp_path / "run")
    run_ranks(1, vqvae, packed, tmp_path / "again", None, given(tmp_path / "run"))
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
    for name, value in weights(tmp_path / "again").items():
        assert np.array_equal(value, weights(tmp_path / "run")[name]), name
    saved = config.parse(VQVAEConfig, ["--config", str(tmp_path / "run" / "config.yaml")], "train-vqvae")
    assert (saved.train_minutes, saved.train_samples) == (None, length(tmp_path / "run")["train_samples"])

    folders = (packed, tmp_path / "run")
    run_ranks(1, ldm, folders, tmp_path / "ldm", MINUTES)
    run_ranks(1, ldm, folders, tmp_path / "ldm-again", given(tmp_path / "ldm"))
    assert losses(tmp_path / "ldm-again") == losses(tmp_path / "ldm")
    for name, value in averaged(tmp_path / "ldm-again").items():
        assert np.array_equal(value, averaged(tmp_path / "ldm")[name]), name
