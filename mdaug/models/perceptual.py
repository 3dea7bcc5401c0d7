"""LPIPS (Zhang et al. 2018, "The unreasonable effectiveness of deep features") from weights that are already here."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from shards.errors import UserError

# The backbones' files, as torch.hub names them.
BACKBONES = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


class PerceptualLoss(nn.Module):
    """LPIPS distance of the images of two batches in [-1, 1]; frozen, fp32, outside of any engine.

    Args:
        net: backbone, one of BACKBONES.
        random_backbone: untrained backbone, for tests without weights.

    Raises:
        UserError: if the backbone's weights are not where torch.hub keeps them. Nothing is downloaded.
    """

    def __init__(self, net: str, random_backbone: bool = False):
        super().__init__()
        path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]
        if not random_backbone and not path.is_file():
            raise UserError(
                f"--use_perceptual needs the weights {BACKBONES[net]} in {path.parent} and they are not there; "
                f"'make weights' fetches them on a machine with network, then copy the file to that place"
            )
        import lpips

        self.lpips = lpips.LPIPS(net=net, pnet_rand=random_backbone, verbose=False).eval().requires_grad_(False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the distances, (B,), of (B, C, H, W) pairs, C in {1, 3}, H and W of at least 16."""
        with torch.autocast(first.device.type, enabled=False):
            pair = [images.float().expand(-1, 3, -1, -1) for images in (first, second)]
            return self.lpips(*pair).flatten()
