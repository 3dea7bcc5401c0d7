"""A small ResNet for spectrograms. Needs torch alone: the recipe of `mdaug augment` copies this file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (16, 32, 64)


class SmallResNet(nn.Module):
    """Three residual stages of 16, 32, 64 channels over (n, C, S, S) in [-1, 1], S a multiple of 16.

    GroupNorm instead of BatchNorm: the batch statistics of real and synthetic images differ, and a network with
    BatchNorm trained on the mixture would be judged on real images with statistics that fit neither.
    He et al., CVPR 2016; Wu and He, ECCV 2018.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, WIDTHS[0], 5, stride=2, padding=2, bias=False),
            nn.GroupNorm(8, WIDTHS[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(*(Block(a, b) for a, b in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)))
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the (n, 64) activations before the last layer."""
        return self.stages(self.stem(images)).mean(dim=(2, 3))


class Block(nn.Module):
    """A residual block of two 3x3 convolutions that halves the resolution."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels_out)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, channels_out, S / 2, S / 2)."""
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)), inplace=True)
