"""The U-Net of a training configuration, and what it costs."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from mdaug import augment
from mdaug.models.hybrid_unet import HybridUNet2DModel
from mdaug.training.ldm import LDMConfig
from shards.errors import UserError


def build_unet(
    config: LDMConfig, latent_shape: list[int], num_classes: int, augmented: bool = False
) -> HybridUNet2DModel:
    """Return the untrained U-Net of a configuration; raises UserError where its sizes do not fit."""
    try:
        return HybridUNet2DModel(
            sample_size=latent_shape[1] if latent_shape[1] == latent_shape[2] else tuple(latent_shape[1:]),
            in_channels=latent_shape[0],
            out_channels=latent_shape[0],
            block_out_channels=tuple(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            num_heads=config.num_heads,
            window_size=config.window_size,
            num_classes=num_classes,
            attention=config.attention,
            dropout=config.dropout,
            norm_num_groups=config.norm_num_groups,
            num_conditions=len(config.condition_on),
            augment_size=augment.SIZE if augmented else 0,
        )
    except ValueError as error:
        raise UserError(f"the U-Net cannot be built: {error}") from None


def forward_flops(network: HybridUNet2DModel, shape: list[int]) -> int:
    """Count the FLOPs of one forward pass of one sample, without computing it."""
    meta = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(
            torch.empty(1, *shape, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
        )
    return counter.get_total_flops()
