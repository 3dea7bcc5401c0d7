"""An image folder given to every stage: each packs it as the training of the VQ-VAE did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from shards import provenance
from shards.colormap import paint
from tests.ranks import run_ranks
from tests.toy import CLASSES, toy_image


def coloured_folder(root: Path) -> Path:
    """Write 40 pictures in jet of two classes and five recordings, numbered so that runs would be the groups."""
    rng = np.random.default_rng(0)
    for i in range(40):
        name = CLASSES[i % 2]
        path = root / name / f"{name}_r{i // 2 % 5}_{i // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(toy_image(i % 2, rng, 32), "jet-256")).save(path)
    return root


def three_stages(images: Path, root: Path) -> None:
    from mdaug.evaluation.options import ReconstructConfig
    from mdaug.evaluation.reconstruct import run as reconstruct
    from mdaug.training.encode import run as encode
    from mdaug.training.options_vqvae import EncodeConfig, VQVAEConfig
    from mdaug.training.train_vqvae import run as train_vqvae

    train_vqvae(
        VQVAEConfig(
            data_dir=images, output_dir=root / "vqvae", image_size=16, n_layers=1, base_channels=8, vq_num_embed=8,
            group_by=r"_(r\d+)_", image_mode="gray", colormap="jet-64", epochs=1, batch_size=8, num_workers=0,
        )
    )  # fmt: skip
    reconstruct(ReconstructConfig(vqvae_path=root / "vqvae", data_dir=images))
    encode(EncodeConfig(data_dir=images, vqvae_path=root / "vqvae", output_dir=root / "latents", num_workers=0))


def test_later_stages_have_the_images_and_the_split_of_the_vqvae(tmp_path):
    run_ranks(1, three_stages, coloured_folder(tmp_path / "images"), tmp_path)
    trained_on = provenance.read(tmp_path / "vqvae" / "best", "vqvae")["made_from"]["images"]
    assert provenance.read(tmp_path / "latents", "latents")["made_from"]["images"] == trained_on
    figures = json.loads((tmp_path / "vqvae" / "reconstruction" / "reconstruction.json").read_text())
    assert figures["same_images_as_training"]
    assert len([path for path in (tmp_path / ".mdaug-cache").iterdir() if path.is_dir()]) == 1  # packed once
