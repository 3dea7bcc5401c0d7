"""Options of the trainers: batch arithmetic, contradictions, run folders, learning rate, EMA."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mdaug import config as configuration
from mdaug.training import loop
from mdaug.training.batches import BatchPlan, accumulation, flags_for, plan_batches
from mdaug.training.checkpoint import TrainingState
from mdaug.training.engine import resolve_precision
from mdaug.training.metrics import Metrics
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.run_folder import check, is_done, open_run
from shards import provenance
from shards.errors import UserError
from shards.output_folder import read_run
from shards.validation import Preflight


def options(**changes) -> VQVAEConfig:
    return VQVAEConfig(**{"data_dir": Path("data"), "output_dir": Path("out"), **changes})


def test_flags_of_the_original_scheme():
    config = configuration.parse(
        VQVAEConfig,
        "--data_dir d --output_dir o --batch_size 12 --image_size 256 --epochs 3 --lr 5e-5 --latent_channels 4 "
        "--vq_embed_dim 4 --vq_num_embed 128 --n_layers 3 --save_epochs 5 --save_images --logging_steps 100 "
        "--use_wandb --use_perceptual --lambda_perceptual 0.1 --fp16".split(),
        "mdaug train-vqvae",
    )
    assert (config.save_images, config.use_wandb, config.use_perceptual) == (True, True, True)
    assert config.mixed_precision == "fp16"
    defaults = options()
    for name in ("lr", "latent_channels", "vq_embed_dim", "vq_num_embed", "n_layers", "save_epochs", "logging_steps"):
        assert getattr(config, name) == getattr(defaults, name), name


def test_saved_configuration_reads_back(tmp_path):
    config = options(lr=1e-3, save_images=True)
    configuration.save(config, tmp_path / "c.yaml")
    assert configuration.parse(VQVAEConfig, ["--config", str(tmp_path / "c.yaml")], "x") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vq_embed_dim": 8}, "latent_channels=4 and vq_embed_dim=8 must be equal"),
        ({"image_size": 100}, "image_size=100 must be a multiple of 8"),
        ({"image_size": "256x100"}, "image_size=256x100 must be a multiple of 8"),
        ({"image_size": "8x64", "use_discriminator": True}, "image_size=8x64 must be 16 or more"),
        (
            {"image_size": "64x"},
            "image_size=64x must be a number of pixels such as 256, or height x width",
        ),
        ({"compile": True, "zero_stage": 3}, "compile=True and zero_stage=3 exclude each other"),
        ({"lr": 0}, "lr=0 must be greater than 0 and at most 1"),
        ({"lr": 1e30}, "lr=1e.30 must be greater than 0 and at most 1"),
        ({"adam_betas": (2.0, 0.9)}, "adam_betas=2.0 must be at least 0 and less than 1"),
        ({"commitment": -1.0}, "commitment=-1.0 must be at least 0"),
        ({"codebook_decay": 1.0}, "codebook_decay=1.0 must be greater than 0 and less than 1"),
        ({"codebook_decay": 0.0}, "codebook_decay=0.0 must be greater than 0 and less than 1"),
        ({"global_batch_size": 8, "gradient_accumulation_steps": 2}, "exclude each other"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


@pytest.mark.parametrize(("given", "kept"), [("64", 64), ("64x64", 64), ("128x256", "128x256")])
def test_image_size_is_one_number_or_height_x_width(given, kept):
    arguments = ["--data_dir", "d", "--output_dir", "o", "--image_size", given]
    assert configuration.parse(VQVAEConfig, arguments, "mdaug train-vqvae").image_size == kept


def test_global_batch_divides_or_the_numbers_are_printed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan = plan_batches(options(batch_size=3, global_batch_size=12, epochs=5), num_samples=30)
    assert (plan.accumulation, plan.global_batch, plan.steps) == (2, 12, math.ceil(150 / 12))
    assert plan_batches(options(batch_size=3, gradient_accumulation_steps=4), 30).global_batch == 24
    with pytest.raises(UserError, match=r"global_batch_size=8 does not divide into 2 rank\(s\) x batch_size=3"):
        plan_batches(options(batch_size=3, global_batch_size=8), 30)


def test_global_batch_goes_with_a_micro_batch_still_to_be_found():
    config = options(batch_size="auto", global_batch_size=12)
    check(config, Preflight(ranks=4), {})
    with pytest.raises(UserError, match=r"does not divide into 5 rank\(s\) x batch_size=auto .* multiple of 5"):
        check(config, Preflight(ranks=5), {})


def test_lengths_and_intervals_in_samples_or_epochs():
    plan = plan_batches(options(batch_size=8, epochs=3, val_epochs=2), num_samples=20)
    assert plan.steps == 8
    assert [step for step in range(1, 9) if plan.due(plan.val_every, step)] == [5]
    plan = plan_batches(options(batch_size=8, train_samples=100, val_samples=16), num_samples=20)
    assert plan.steps == 13
    assert [step for step in range(1, 14) if plan.due(plan.val_every, step)] == [2, 4, 6, 8, 10, 12]


PLAN = BatchPlan(
    global_batch=8, micro_batch=2, ranks=1, accumulation=4, steps=10, num_samples=80, val_every=80, save_every=80
)


def test_fp16_is_refused_on_cpu():
    with pytest.raises(UserError, match="needs a GPU"):
        resolve_precision("fp16", torch.device("cpu"))
    assert resolve_precision("auto", torch.device("cpu")) == "no"


IMAGES = {"images": "abc"}


def test_run_folder_of_another_run_is_refused_by_name(tmp_path):
    config = options(output_dir=tmp_path / "run")
    assert not is_done(config, IMAGES)
    output = open_run(config, IMAGES)
    assert open_run(options(output_dir=tmp_path / "run", logging_steps=7), IMAGES)
    with pytest.raises(UserError, match=r"lr: 5e-05 there, 0.1 now"):
        open_run(options(output_dir=tmp_path / "run", lr=0.1), IMAGES)
    with pytest.raises(UserError, match="made from images: abc there, another now"):
        open_run(config, {"images": "another"})
    output.finish("vqvae-run", "hash", {}, note="trained to the end")
    assert is_done(config, IMAGES)
    assert provenance.read(output.path, "vqvae-run")["made_from"] == IMAGES


def test_the_folder_of_a_run_holds_its_options_as_they_are_read_back(tmp_path):
    config = options(output_dir=tmp_path / "run", lr=1e-3, batch_size="auto")
    assert open_run(config, IMAGES)
    saved = ["--config", str(tmp_path / "run" / "config.yaml")]
    assert configuration.parse(VQVAEConfig, saved, "mdaug train-vqvae") == config
    assert read_run(tmp_path / "run")["command"] == "train-vqvae"


def test_the_global_batch_may_be_written_in_another_way_when_resuming(tmp_path):
    """What the message about another global batch asks for; the checkpoint itself compares the products."""
    assert open_run(options(output_dir=tmp_path / "run", gradient_accumulation_steps=2), IMAGES)
    assert open_run(options(output_dir=tmp_path / "run", global_batch_size=64), IMAGES)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 4), (2, 4), (3, 4), (4, 8), (6, 16)])
def test_the_flags_that_restore_a_global_batch_are_not_refused(ranks, micro):
    """On another number of ranks: what the message names is what the next attempt accepts."""
    with pytest.raises(UserError, match="global_batch_size=12 does not divide") as refused:
        accumulation(options(batch_size=5, global_batch_size=12), ranks)
    assert flags_for(12, ranks, 5) in str(refused.value)
    flags = flags_for(12, ranks, micro).removeprefix("add ").split()
    config = configuration.parse(VQVAEConfig, [*flags, "--data_dir=a", "--output_dir=b"], "mdaug train-vqvae")
    assert config.batch_size <= micro
    assert config.batch_size * ranks * accumulation(config, ranks) == 12


def test_ranks_that_no_flags_fit_are_told_which_numbers_do():
    assert flags_for(12, 5, 4) == "12 samples do not divide over 5 rank(s): start it on one of 1, 2, 3, 4, 6, 12 ranks"


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml"])
def test_a_folder_of_other_files_or_of_an_earlier_version_is_refused(tmp_path, name):
    (tmp_path / name).write_text("command: VQVAEConfig")
    with pytest.raises(UserError, match=f"holds other files \\('{name}'\\)"):
        open_run(options(output_dir=tmp_path), IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_training_goes_on_while_any_watched_figure_falls(tmp_path):
    exported = 0

    class Scripted:
        score, watched = "score", ("low", "high")

        def __init__(self, *figures):
            self.figures = iter(figures)

        def validate(self, engine):
            return dict(zip(("score", "low", "high"), next(self.figures), strict=True))

    config = options(output_dir=tmp_path, early_stop_patience=2)
    metrics = Metrics(config, PLAN, None)
    task = Scripted((3, 3, 3), (4, 4, 2), (4, 4, 4), (2, 4, 4), (3, 1, 3), (3, 3, 3), (5, 5, math.nan), (1, 1, 1))
    state = TrainingState(global_batch=8)
    seen = []
    for _ in range(8):
        exported += loop._validate(task, None, state, metrics)
        stop = loop._stale(state, config)
        seen.append((stop, state.stale_validations, exported))
    metrics.close()
    #              first       high fell   stale       score fell  low fell    stale       stale: stop  all fell
    assert seen == [
        (False, 0, 1), (False, 0, 1), (False, 1, 1), (False, 0, 2), (False, 0, 2), (False, 1, 2), (True, 2, 2),
        (False, 0, 3),
    ]  # fmt: skip
    assert state.lowest == {"score": 1, "low": 1, "high": 1}


def test_run_killed_while_its_folder_was_made_is_no_foreign_folder(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / ".config.yaml.4711.tmp").write_text("lr: 5")  # of a configuration that was never renamed
    assert open_run(options(output_dir=tmp_path), IMAGES)
    assert (tmp_path / "config.yaml").is_file()


def test_the_log_keeps_what_is_printed(tmp_path, capsys):
    """Over a restart, too."""
    for text in ("first", "second"):
        metrics = Metrics(options(output_dir=tmp_path), PLAN, None)
        metrics.log(text)
        metrics.close()
    assert [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "second"]
    assert capsys.readouterr().out == "first\nsecond\n"
