"""Presets are whole: every command of the chain, sizes that agree from stage to stage, networks that can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.demo import stage_flags
from mdaug import cli, config

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir() and folder.name != "launch")


def load(preset: str) -> dict:
    """Return command -> its configuration under a preset."""
    folders = stage_flags(Path("out"), Path("images"))
    files = sorted((CONFIGS / preset).glob("*.yaml"))
    return {
        file.stem: config.parse(cli.load(file.stem)[0], ["--config", str(file), *folders[file.stem]], prog=preset)
        for file in files
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_chain_that_fits_together(preset):
    from mdaug.models.hybrid_unet import HybridUNet2DModel

    of = load(preset)
    assert of.keys() >= {"pack", "train-vqvae", "encode", "train-ldm", "generate"}
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
