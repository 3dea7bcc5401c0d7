"""Properties of the training engine, shown on the VQ-VAE: ranks, ZeRO stages, accumulation and interruptions."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import provenance
from shards.output_folder import is_finished, read_progress
from tests.ranks import run_ranks
from tests.toy import CLASSES, toy_image, toy_packed
from tests.trainings import losses, train_vqvae, weights

STEPS_PER_EPOCH = 8  # 64 images, global batch 8


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_packed(tmp_path_factory.mktemp("toy") / "packed")


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """Return the run that nothing disturbed, on so many ranks at a ZeRO stage."""

    @functools.cache
    def run(ranks: int, stage: int) -> Path:
        output = tmp_path_factory.mktemp("undisturbed") / "run"
        run_ranks(ranks, train_stage, packed, output, stage)
        return output

    return run


@pytest.fixture(scope="module")
def one_rank(undisturbed: Callable[[int, int], Path]) -> Path:
    """The undisturbed run on one rank that the others are compared with."""
    return undisturbed(1, 0)


@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (4, 0), (2, 1), (2, 2), (2, 3)])
def test_loss_curve_is_the_same_for_any_ranks_and_zero_stage(undisturbed, one_rank, ranks, stage):
    reference, curve = losses(one_rank), losses(undisturbed(ranks, stage))
    assert len(curve) == len(reference) == 3 * STEPS_PER_EPOCH
    assert curve[:10] == pytest.approx(reference[:10], rel=1e-5)
    assert curve == pytest.approx(reference, rel=1e-4)


def train_stage(packed: Path, output: Path, stage: int) -> None:
    train_vqvae(packed, output, zero_stage=stage)


def train_stage_until(packed: Path, output: Path, stage: int, step: int) -> None:
    train_vqvae(packed, output, stop_after=step, zero_stage=stage)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 2), (2, 3)])
def test_interrupted_run_ends_with_the_same_bytes(packed, undisturbed, tmp_path, ranks, stage):
    output = tmp_path / "run"
    run_ranks(ranks, train_stage_until, packed, output, stage, 5)
    assert not is_finished(output)
    assert (output / "latest").read_text() == "samples-000000000040\n"
    progress = read_progress(output)
    assert (progress.done, progress.saved, progress.total, progress.unit) == (40, 40, 192, "sample")
    assert re.fullmatch(r"epoch 0\.62, loss \d\.\d{3}, [\d.]+ img/s, \d+ % paused", progress.note)
    run_ranks(ranks, train_stage, packed, output, stage)
    assert losses(output) == losses(undisturbed(ranks, stage))
    expected = weights(undisturbed(ranks, stage))
    for name, value in weights(output).items():
        assert (value == expected[name]).all(), name
    assert is_finished(output)
    assert read_progress(output) is None


@pytest.mark.parametrize(
    ("first", "then"),  # (ranks, ZeRO stage)
    [((1, 0), (2, 2)), ((1, 0), (2, 3)), ((2, 2), (1, 0)), ((2, 3), (1, 0)), ((2, 2), (4, 2)), ((2, 3), (1, 2)),
     ((2, 1), (1, 3)), ((4, 0), (1, 0))],
)  # fmt: skip
def test_run_moves_to_other_ranks_and_zero_stages(packed, one_rank, tmp_path, first, then):
    output = tmp_path / "run"
    run_ranks(first[0], train_stage_until, packed, output, first[1], 9)
    run_ranks(then[0], train_stage, packed, output, then[1])
    assert len(losses(output)) == 3 * STEPS_PER_EPOCH
    assert losses(output) == pytest.approx(losses(one_rank), rel=1e-4)


def train_with_bad_steps(
    packed: Path, output: Path, stage: int, bad: tuple[int, ...], stop_after: int | None = None
) -> str:
    """Train with a loss that is not a number in some steps (counted from the start of this process), on the last
    rank alone; return the error, if any.
    """
    from mdaug import distributed
    from mdaug.training.vqvae_task import VQVAETask
    from shards.errors import UserError

    calls, loss = iter(range(10**6)), VQVAETask.loss

    def spoiled(task, engine, batch):
        value, figures = loss(task, engine, batch)
        step = next(calls) // (8 // (2 * distributed.world_size()))
        if step in bad and distributed.rank() == distributed.world_size() - 1:
            value = value * float("nan")
        return value, figures

    VQVAETask.loss = spoiled
    try:
        train_vqvae(packed, output, stop_after=stop_after, zero_stage=stage, max_skipped_steps=4)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_step_that_is_not_finite_on_one_rank_is_left_out_on_all(packed, tmp_path, stage):
    errors = run_ranks(2, train_with_bad_steps, packed, tmp_path / "run", stage, (3, 7, 8))
    assert errors == ["", ""]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped_steps"] for r in records if "loss" in r] == [0] * 3 + [1] * 4 + [2] + [3] * 16
    assert all(np.isfinite(value).all() for value in weights(tmp_path / "run").values())
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


def test_skipped_steps_are_remembered_when_resuming(packed, tmp_path):
    assert run_ranks(2, train_with_bad_steps, packed, tmp_path / "run", 2, (3, 4), 5) == ["", ""]
    errors = run_ranks(2, train_with_bad_steps, packed, tmp_path / "run", 2, (0, 1))
    assert all("not finite in the last 4 steps (now at step 7)" in error for error in errors)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped_steps"] for r in records if "loss" in r] == [0, 0, 0, 1, 2, 3, 4]


def test_run_that_stays_not_finite_stops_and_names_the_last_good_checkpoint(packed, tmp_path):
    errors = run_ranks(2, train_with_bad_steps, packed, tmp_path / "run", 0, tuple(range(10, 24)))
    assert all("not finite in the last 4 steps" in error and "checkpoint" in error for error in errors)
    assert not is_finished(tmp_path / "run")


def train_without_progress(packed: Path, output: Path) -> None:
    train_vqvae(packed, output, lr=1e-12, codebook_decay=0.999999, val_samples=8, early_stop_patience=2)


def test_run_killed_after_it_stopped_early_does_not_train_on(packed, tmp_path):
    run_ranks(1, train_without_progress, packed, tmp_path / "run")
    finished, curve = tmp_path / "run" / provenance.FILE_NAME, losses(tmp_path / "run")
    assert "no improvement" in json.loads(finished.read_text())["note"]
    assert len(curve) < 3 * STEPS_PER_EPOCH
    finished.unlink()  # as if killed while the last weights were exported
    run_ranks(1, train_without_progress, packed, tmp_path / "run")
    assert "no improvement" in json.loads(finished.read_text())["note"]
    assert losses(tmp_path / "run") == curve


def test_checkpoint_without_marker_is_never_chosen(packed, one_rank, tmp_path):
    output = tmp_path / "run"
    run_ranks(1, train_stage_until, packed, output, 0, 5)
    broken = output / "checkpoints" / "samples-000000000048"
    (broken / "engine").mkdir(parents=True)
    (broken / "state.json").write_text("{}")
    run_ranks(1, train_vqvae, packed, output)
    assert not broken.exists()
    assert losses(output) == losses(one_rank)


def test_finished_run_says_so_and_changes_nothing(packed, one_rank):
    before = {path: path.stat().st_mtime_ns for path in one_rank.rglob("*")}
    run_ranks(1, train_vqvae, packed, one_rank)
    assert before == {path: path.stat().st_mtime_ns for path in one_rank.rglob("*")}


def train_folder(images: Path, output: Path, log: Path) -> None:
    with log.open("a") as file, contextlib.redirect_stdout(file):
        train_vqvae(images, output, epochs=1, n_layers=2, vq_num_embed=512, group_by=r"_g(\d+)")


def test_image_folder_is_packed_once_and_idle_codes_are_reported(tmp_path):
    """The original scheme gives --data_dir as a folder of images, at every stage."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.fromarray(toy_image(label, rng, 24)[:, :, 0])
            picture.save(tmp_path / "images" / name / f"{name}_g{i // 2}_{i}.png")
    run_ranks(2, train_folder, tmp_path / "images", tmp_path / "run", tmp_path / "log")
    assert len(list((tmp_path / ".mdaug-cache").glob("*/provenance.json"))) == 1
    assert (tmp_path / "run" / "best" / "geometry.json").is_file()
    warning = "of the 512 codes are used on the validation set; try a smaller --vq_num_embed"
    assert (tmp_path / "log").read_text().count(warning) == 1


def test_saved_model_is_a_stock_vqmodel_that_reconstructs(one_rank, packed):
    import torch
    from diffusers import VQModel

    from mdaug.images import to_tensor
    from shards.dataset import ShardDataset

    model = VQModel.from_pretrained(one_rank / "best").eval()
    dataset = ShardDataset(packed / "val")
    images = torch.stack([to_tensor(dataset[i]["image"]) for i in range(len(dataset))])
    with torch.no_grad():
        mse = float((model(images).sample - images).square().mean())
    records = [json.loads(line) for line in (one_rank / "metrics.jsonl").read_text().splitlines()]
    assert mse == pytest.approx(min(r["val/mse"] for r in records if "val/mse" in r), rel=1e-4)
    assert json.loads((one_rank / "best" / "geometry.json").read_text()) == {
        "image_shape": [16, 16, 1], "latent_shape": [4, 8, 8], "floor": [0], "colormap": None,
    }  # fmt: skip
