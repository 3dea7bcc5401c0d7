"""Presets are whole: every command of the chain, sizes that agree from stage to stage, networks that can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch import stages
from mdaug import cli
from mdaug.models.hybrid_unet import HybridUNet2DModel
from shards.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(file.stem for file in CONFIGS.glob("*.yaml"))


def load(preset: str) -> dict:
    """Return stage -> its options under a preset."""
    return {command: cli.parse(command, stages.flags(command, Path("out"), preset=preset)) for command in stages.CHAIN}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_chain_that_fits_together(preset):
    of = load(preset)
    vqvae, ldm = of["train-vqvae"], of["train-ldm"]
    assert of["pack"].image_size == vqvae.image_size == ldm.image_size
    assert ldm.latent_channels == vqvae.latent_channels
    coarsest = ldm.image_size // 2**vqvae.n_layers // 2 ** (len(ldm.block_out_channels) - 1)
    assert coarsest >= 2  # pixels of the U-Net's coarsest level
    with torch.device("meta"):
        HybridUNet2DModel(
            block_out_channels=tuple(ldm.block_out_channels),
            layers_per_block=ldm.layers_per_block,
            num_heads=ldm.num_heads,
            window_size=ldm.window_size,
            attention=ldm.attention,
            norm_num_groups=ldm.norm_num_groups,
        )


def test_every_preset_is_explained():
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert [preset for preset in PRESETS if f"`{preset}`" not in text] == []


def test_a_section_wins_over_the_common_part_which_reaches_only_commands_with_such_a_field():
    of = load("demo")
    assert (of["pack"].image_size, of["train-ldm"].image_size, of["simulate"].image_size) == (64, 64, 256)
    assert not hasattr(of["encode"], "image_size")


def test_the_old_path_of_a_preset_names_the_new_one():
    with pytest.raises(UserError, match="a preset is one file now: --config demo"):
        cli.parse("pack", ["--config", "configs/demo/pack.yaml", *stages.flags("pack", Path("out"))])


def test_a_base_model_is_adapted_with_the_networks_of_the_generators_of_few_images():
    base, few = load("base"), load("few")
    for command, own in (
        ("train-vqvae", {"n_layers", "base_channels", "vq_num_embed", "latent_channels", "image_size"}),
        ("train-ldm", {"block_out_channels", "layers_per_block", "num_heads", "norm_num_groups", "attention"}),
        ("train-ldm", {"window_size", "prediction_type", "beta_schedule", "image_size", "condition_on"}),
    ):
        assert {name: getattr(base[command], name) for name in own} == {
            name: getattr(few[command], name) for name in own
        }
