"""Options of train-ldm: the flags of the original scheme and the learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdaug import config as configuration
from mdaug.training.options_ldm import LDMConfig
from mdaug.training.schedule import learning_rate
from shards.errors import UserError


def parse(flags: str) -> LDMConfig:
    return configuration.parse(LDMConfig, f"--data_dir d --output_dir o {flags}".split(), "mdaug train-ldm")


def test_flags_of_the_original_scheme():
    config = parse(
        "--vqvae_model_path v --batch_size 12 --image_size 256 --epochs 3 --lr 5e-5 --latent_channels 4 "
        "--save_epochs 5 --save_images --eval_steps 1000 --logging_steps 100 --mixed_precision bf16 "
        "--beta_schedule cosine --scheduler_type pndm --num_inference_steps 50 --use_wandb "
        "--gradient_accumulation_steps 2"
    )
    assert (config.vqvae_path, config.batch_size, config.epochs) == (Path("v"), 12, 3)
    assert (config.save_images, config.use_wandb, config.mixed_precision) == (True, True, "bf16")
    assert (config.beta_schedule, config.scheduler_type) == ("squaredcos_cap_v2", "pndm")
    assert config.gradient_accumulation_steps == 2
    defaults = parse("--vqvae_path v")
    for name in ("vqvae_path", "image_size", "lr", "latent_channels", "save_epochs", "eval_steps", "logging_steps",
                 "num_inference_steps"):  # fmt: skip
        assert getattr(config, name) == getattr(defaults, name), name
    assert (defaults.warmup_steps, defaults.early_stop_patience) == (2000, 3)
    assert (defaults.block_out_channels, defaults.num_heads) == ((256, 512, 768, 1024), 16)
    assert parse("--vqvae_path v --fp16").mixed_precision == "fp16"


def test_the_vqvae_is_required_by_name():
    with pytest.raises(UserError, match="vqvae_path"):
        parse("")
    with pytest.raises(TypeError, match="vqvae_path"):
        LDMConfig(Path("d"), Path("o"))


@pytest.mark.parametrize("name", ["mixed_precision", "beta_schedule", "scheduler_type"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match=name):
        parse(f"--vqvae_path v --{name} other")


def test_compiling_and_zero_3_exclude_each_other():
    with pytest.raises(UserError, match="compile=True and zero_stage=3 exclude each other"):
        parse("--vqvae_path v --compile --zero_stage 3")


@pytest.mark.parametrize(
    ("steps", "warmup"),
    [(100_000, 2000), (1000, 100), (8, 0)],  # at most a tenth of the run
)
def test_learning_rate_rises_and_falls_along_half_a_cosine(steps, warmup):
    config = parse("--vqvae_path v --lr 0.5")

    def rate(step: int) -> float:
        return learning_rate(config, step, steps)

    if warmup:
        assert rate(0) == pytest.approx(0.5 / warmup)
        assert rate(warmup // 2 - 1) == pytest.approx(0.25)
        assert rate(warmup - 1) == pytest.approx(0.5)
    assert rate(warmup) == pytest.approx(0.5)
    assert rate(warmup + (steps - warmup) // 2) == pytest.approx(0.25)
    assert rate(steps) == pytest.approx(0, abs=1e-12)
    assert all(rate(step) > rate(step + 1) for step in range(warmup, steps, max(1, steps // 20)))
