"""Images that are not square: right shapes from the image folder to the synthetic shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.ranks import run_ranks
from tests.toy import CLASSES, toy_image

SIZE = (
    "16x40"  # Doppler x time; latents of 8 x 20, which the U-Net's levels halve to 4 x 10 and windows of 4 do not fill
)


def image_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(24):
        path = root / CLASSES[i % 2] / f"{CLASSES[i % 2]}_{100 * i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(toy_image(i % 2, rng, 32)[:, :, 0]).save(path)
    return root


def every_stage(packed: Path, root: Path) -> None:
    from mdaug.evaluation.options import ReconstructConfig
    from mdaug.evaluation.reconstruct import run as reconstruct
    from mdaug.generation.generate import run as generate
    from mdaug.generation.options import GenerateConfig
    from mdaug.training.encode import run as encode
    from mdaug.training.options_ldm import LDMConfig
    from mdaug.training.options_vqvae import EncodeConfig, VQVAEConfig
    from mdaug.training.train_ldm import run as train_ldm
    from mdaug.training.train_vqvae import run as train_vqvae

    common = {"image_size": SIZE, "epochs": 1, "num_workers": 0, "save_images": True}
    train_vqvae(
        VQVAEConfig(
            data_dir=packed, output_dir=root / "vqvae", n_layers=1, base_channels=8, vq_num_embed=8, batch_size=8,
            use_discriminator=True, disc_start=0, disc_channels=8, **common,
        )
    )  # fmt: skip
    reconstruct(ReconstructConfig(vqvae_path=root / "vqvae", data_dir=packed))
    encode(EncodeConfig(data_dir=packed, vqvae_path=root / "vqvae", output_dir=root / "latents", num_workers=0))
    train_ldm(
        LDMConfig(
            data_dir=packed, vqvae_path=root / "vqvae", output_dir=root / "ldm", latents_dir=root / "latents",
            block_out_channels=(8, 16), num_heads=2, norm_num_groups=8, layers_per_block=1, window_size=4, batch_size=8,
            num_inference_steps=2, **common,
        )
    )  # fmt: skip
    generate(
        GenerateConfig(
            ldm_path=root / "ldm", output_dir=root / "synthetic", num_samples=4, num_inference_steps=2, grid=True
        )
    )


def test_shapes_are_right_at_every_stage(tmp_path):
    from mdaug.artifacts import load_geometry
    from mdaug.pipeline.pipeline import MicroDopplerPipeline
    from shards.dataset import ShardDataset
    from shards.options import PackConfig
    from shards.pack import run as pack

    pack(PackConfig(image_folder(tmp_path / "images"), tmp_path / "packed", image_size=SIZE, workers=1))
    run_ranks(1, every_stage, tmp_path / "packed", tmp_path)
    assert ShardDataset(tmp_path / "packed" / "train")[0]["image"].shape == (16, 40, 1)
    geometry = load_geometry(tmp_path / "vqvae")
    assert (geometry["image_shape"], geometry["latent_shape"]) == ([16, 40, 1], [4, 8, 20])
    assert json.loads((tmp_path / "latents" / "statistics.json").read_text())["shape"] == [4, 8, 20]
    unet = MicroDopplerPipeline.from_pretrained(tmp_path / "ldm" / "pipeline").unet
    assert tuple(unet.config.sample_size) == (8, 20)
    synthetic = ShardDataset(tmp_path / "synthetic")
    assert len(synthetic) == 4
    assert all(synthetic[i]["image"].shape == (16, 40, 1) for i in range(4))
