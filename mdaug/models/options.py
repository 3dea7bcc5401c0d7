"""Options of `mdaug weights`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class WeightsConfig:
    """Fetch the weights of the perceptual loss (LPIPS), once, on a machine with a network."""

    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Backbone whose weights are fetched into the cache of torch.hub, as --perceptual_net names it."""
