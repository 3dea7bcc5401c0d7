"""LPIPS (Zhang et al. 2018, "The unreasonable effectiveness of deep features"); its weights are fetched beforehand."""

from __future__ import annotations

from pathlib import Path

import lpips
import torch
import torchvision
from torch import nn

from mdaug import distributed
from mdaug.models.options import WeightsConfig
from shards.errors import UserError

# Of each backbone: torchvision's name, and its file as torch.hub names it.
BACKBONES = {
    "vgg": ("vgg16", "vgg16-397923af.pth"),
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}


def run(options: WeightsConfig) -> None:
    """`mdaug weights`: fetch a backbone's weights to where `find_weights` looks; UserError without a network."""
    name, file = BACKBONES[options.net]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        torchvision.models.get_model(name, weights="IMAGENET1K_V1")
    except OSError as error:
        raise UserError(
            f"the weights of {options.net} could not be fetched ({error}); fetch {file} on a machine with a network "
            f"and copy it to {folder}"
        ) from None
    print(f"{folder / file} is ready")


def find_weights(net: str, weights: Path | None) -> Path:
    """Return the file of a backbone's weights, given or where torch.hub keeps it; raises UserError if it is missing.

    Nothing is downloaded.
    """
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net][1]
    if not path.is_file():
        raise UserError(
            f"--use_perceptual needs the weights {path.name}, which are not in {path.parent}; "
            f"'mdaug weights --net {net}' fetches them on a machine with network, then copy the file there or name it "
            "with --perceptual_weights"
        )
    return path


class PerceptualLoss(nn.Module):
    """LPIPS distance of the images of two batches in [-1, 1]; frozen, outside of any engine.

    Args:
        net: backbone, one of BACKBONES.
        weights: the backbone's weights as torchvision publishes them; by default the file that torch.hub keeps.
        precision: no, bf16 or fp16, of the backbone; features are compared in fp32.
        random_backbone: untrained backbone, for tests without weights.

    Raises:
        UserError: the weights are missing, or those of another network. Nothing is downloaded.
    """

    def __init__(self, net: str, weights: Path | None = None, precision: str = "no", random_backbone: bool = False):
        super().__init__()
        self.dtype = distributed.DTYPES[precision]
        path = None if random_backbone else find_weights(net, weights)
        self.lpips = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
        if path is not None:
            state = torch.load(path, map_location="cpu", weights_only=True)
            backbone = self.lpips.net
            # lpips cuts torchvision's `features` into slices and keeps their numbers: slice2.4.bias is features.4.bias
            names = {name: "features." + name.split(".", 1)[1] for name in backbone.state_dict()}
            if not set(names.values()) <= state.keys():
                raise UserError(f"{path} does not hold the weights of {net} as torchvision publishes them")
            backbone.load_state_dict({name: state[published] for name, published in names.items()})
        self.lpips.net.to(self.dtype)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the distances, (B,), of (B, C, H, W) pairs, C in {1, 3}, H and W of at least 16."""
        with torch.autocast(first.device.type, enabled=False):
            distance = torch.zeros(len(first), device=first.device)
            for layer, *pair in zip(self.lpips.lins, self._features(first), self._features(second), strict=True):
                distance = distance + layer((pair[0] - pair[1]).square()).mean((1, 2, 3))
            return distance

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of each layer in fp32, their vectors over the channels of length one."""
        scaled = self.lpips.scaling_layer(images.float().expand(-1, 3, -1, -1))
        scaled = scaled.to(self.dtype, memory_format=distributed.memory_format())
        return [lpips.normalize_tensor(layer.float()) for layer in self.lpips.net(scaled)]
