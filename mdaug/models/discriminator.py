"""The PatchGAN discriminator: a map of logits, each judging one patch of the image."""

from __future__ import annotations

import math

import torch
from torch import nn


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2, then one logit per patch (Isola et al. 2017, "Image-to-image translation with
    conditional adversarial networks", section 3.2.2).

    GroupNorm instead of BatchNorm: what an image gets does not depend on the batch, the rank or the precision.

    Args:
        image_channels: channels of the images.
        image_size: (height, width) in pixels, at least 16 each; small images get fewer halvings than three.
        channels: channels of the first layer, a multiple of 8; they double per layer up to eightfold.
    """

    def __init__(self, image_channels: int, image_size: tuple[int, int], channels: int = 64):
        super().__init__()
        halvings = min(3, int(math.log2(min(image_size))) - 2)
        widths = [channels << min(level, 3) for level in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(image_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, halvings + 1):
            stride = 2 if level < halvings else 1
            layers += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=False),
                nn.GroupNorm(8, widths[level]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, h, w), positive for what looks real, of images (B, C, H, W) in [-1, 1]."""
        return self.layers(images)
