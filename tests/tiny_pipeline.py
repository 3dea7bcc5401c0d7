"""A pipeline of random weights that samples in a moment, and how tests sample from it."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path

import torch
from diffusers import VQModel

from mdaug.models.hybrid_unet import HybridUNet2DModel
from mdaug.pipeline.folder import save_pipeline
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.pipeline.schedulers import build_scheduler
from shards.colormap import colormap as palettes

CLASSES = ["walk", "fall", "bird"]
CONDITIONS = {
    "names": ["speed", "aspect"],
    "mean": [1.5, 30.0],
    "std": [0.5, 20.0],
    "values": {"walk": [[1.0, 10.0], [2.0, None], [1.5, 60.0]], "fall": [[0.5, 30.0]], "bird": [[None, None]]},
}


def tiny_unet(**options) -> HybridUNet2DModel:
    """A U-Net whose every weight matters: random, where a fresh one is zero in its last layers."""
    settings = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "num_heads": 2,
        "norm_num_groups": 4,
        "window_size": 4,
        "num_classes": len(CLASSES),
    }
    torch.manual_seed(0)
    unet = HybridUNet2DModel(**(settings | options)).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.normal_(unet.class_embedding.weight, std=3.0)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.5)
    if unet.condition_embedding is not None:
        torch.nn.init.normal_(unet.condition_embedding.linear_2.weight, std=3.0)
    return unet


def tiny_pipeline(
    scheduler=None,
    channels: int = 3,
    colormap: str | None = None,
    conditions: dict | None = None,
    floor: list[int] | None = None,
    classes: list[str] = CLASSES,
    auxiliary: list[str] | None = None,
    **unet_options,
) -> MicroDopplerPipeline:
    """Images of 16 x 16 pixels, latents of 4 x 8 x 8."""
    told = len(conditions["names"]) if conditions else 0
    unet = tiny_unet(**{"num_conditions": told, "num_classes": len(classes)} | unet_options)
    vqvae = VQModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=16,
        vq_embed_dim=4,
        norm_num_groups=4,
    ).eval()
    torch.nn.init.normal_(vqvae.quantize.embedding.weight)
    return MicroDopplerPipeline(
        vqvae,
        unet,
        scheduler or build_scheduler(),
        classes=classes,
        latent_mean=[0.1, 0.0, -0.1, 0.2],
        latent_std=[1.0, 0.9, 1.1, 1.0],
        latent_shape=[4, 8, 8],
        image_shape=[16, 16, channels],
        conditions=conditions,
        floor=floor,
        auxiliary=auxiliary,
        colormap=colormap and {"name": colormap, "palette": palettes(colormap).palette.tobytes().hex()},
    )


def save_tiny(folder: Path, **options) -> Path:
    """Write a tiny pipeline folder with provenance and return it."""
    made_from = {"images": "1" * 64, "vqvae": "2" * 64, "latents": "3" * 64}
    save_pipeline(tiny_pipeline(**options), folder, made_from=made_from, config={})
    return folder


def clean_environment(folder: Path) -> Path:
    """Make a virtual environment that finds the libraries of this one, but no project installed in it; its python."""
    venv.create(folder, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # A .pth file adds a folder without reading the .pth files in it, by which an editable mdaug would be found.
    Path(packages, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def sample(pipeline, labels=("fall", 0), count=2, **options):
    options = {"num_inference_steps": 5, "output_type": "pt", "generator": seeded(len(labels) * count)} | options
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(list(labels), num_images_per_prompt=count, **options).images
