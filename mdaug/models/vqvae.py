"""The VQ-VAE: a stock diffusers VQModel, as it is built, trained through its parts, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import VQModel
from torch import nn

from mdaug import distributed
from mdaug.artifacts import GEOMETRY_FILE, find_vqvae
from mdaug.models.quantizer import Codebook
from shards import atomic, provenance


def build_vqvae(
    *,
    image_channels: int,
    latent_channels: int,
    num_codes: int,
    n_layers: int,
    base_channels: int = 32,
    max_channels: int = 256,
) -> VQModel:
    """Return an untrained VQModel with `n_layers` halvings: 256 pixels -> 32 x 32 latents for n_layers = 3.

    diffusers' VQModel does not downsample in its last block, so n halvings need n + 1 blocks; their
    channels double from `base_channels` up to `max_channels`.
    """
    blocks = n_layers + 1
    channels = tuple(min(base_channels << level, max_channels) for level in range(blocks))
    return VQModel(
        in_channels=image_channels,
        out_channels=image_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        vq_embed_dim=latent_channels,
        num_vq_embeddings=num_codes,
        norm_num_groups=8,
    )


class TrainableVQVAE(nn.Module):
    """The parts of a VQModel around a training codebook, as one module for the engine."""

    def __init__(self, model: VQModel, codebook: Codebook):
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv
        self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder
        self.codebook = codebook

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents before quantization, (B, d, h, w), of images (B, C, H, W) in [-1, 1]."""
        images = images.contiguous(memory_format=distributed.memory_format())
        return self.quant_conv(self.encoder(images))

    def forward(
        self, images: torch.Tensor, only_encode: bool = False
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return (reconstruction, latents, code indices, commitment loss); only the latents if asked."""
        latents = self.encode(images)
        if only_encode:
            return None, latents, None, None
        quantized, indices, commitment = self.codebook(latents)
        return self.decoder(self.post_quant_conv(quantized)), latents, indices, commitment


def stock_model(config: dict, state: dict[str, torch.Tensor]) -> VQModel:
    """Return the VQModel with configuration `config` and the full state dict (fp32, CPU) of a TrainableVQVAE."""
    model = VQModel.from_config(config)
    state = dict(state)
    codes = state.pop("codebook.codes")
    state = {name: value for name, value in state.items() if not name.startswith("codebook.")}
    model.load_state_dict({**state, "quantize.embedding.weight": codes})
    return model.eval()


def save_vqvae(
    model: VQModel,
    folder: Path,
    *,
    image_shape: list[int],
    made_from: dict[str, str],
    config: dict,
    floor: list[int] | None = None,
    colormap: str | None = None,
) -> None:
    """Write a VQModel folder with geometry and provenance; the geometry is measured by a dry encode.

    `floor` is the most frequent colour of the training images, C levels 0 to 255; `colormap` names the
    colour map behind images of one channel.
    """
    height, width, channels = image_shape
    with torch.no_grad():
        latents = model.encode(torch.zeros(1, channels, height, width)).latents
    (folder / provenance.FILE_NAME).unlink(missing_ok=True)
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        atomic.let_others_read(file)
    geometry = {
        "image_shape": image_shape,
        "latent_shape": list(latents.shape[1:]),
        "floor": floor,
        "colormap": colormap,
    }
    atomic.write_text(folder / GEOMETRY_FILE, json.dumps(geometry) + "\n")
    files = [*folder.glob("*.safetensors"), folder / "config.json", folder / GEOMETRY_FILE]
    content_hash = provenance.hash_files(files)
    provenance.write(folder, kind="vqvae", content_hash=content_hash, made_from=made_from, config=config)


def load_vqvae(path: Path) -> VQModel:
    """Return the VQModel of a run folder (its best/) or diffusers folder, in eval mode."""
    return VQModel.from_pretrained(find_vqvae(path)).eval()
