"""Fixed networks in whose features images are compared, and the features of whole sets, shared among ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import inception_v3

from mdaug.distributed import device
from mdaug.images import to_tensor
from mdaug.measures.image_set import ImageSet
from shards import atomic

RANDOM_FEATURES = 64
INCEPTION = "inception_v3_google-0cc3c7bd.pth"  # torchvision's weights
DINO, DINO_WEIGHTS = "facebookresearch_dinov2_main", "dinov2_vits14_pretrain.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet in [0, 1]
BATCH, PIECE = 128, 512  # images


def random_network(channels: int) -> nn.Module:
    """Return a fixed convolutional network with random weights, (n, C, S, S) -> (n, 64): no labels, no training.

    Random features rank generative models much as trained ones do and carry no photographs and no labels:
    Naeem et al., ICML 2020, section 4.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for width_in, width in ((channels, 16), (16, 32), (32, RANDOM_FEATURES)):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.LeakyReLU(0.2), nn.AvgPool2d(2)]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, gain=float(np.sqrt(2)))
    return network.eval()


class Photographs(nn.Module):
    """A network for RGB photographs applied to (n, C, S, S) in [-1, 1]: channels repeated, enlarged, normalised."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the (n, d) features."""
        colour = (images.expand(-1, 3, -1, -1) + 1) / 2
        enlarged = F.interpolate(colour, (self.size, self.size), mode="bilinear", antialias=True)
        return self.network((enlarged - self.mean) / self.std)


def networks(channels: int) -> dict[str, nn.Module]:
    """Return name -> network: the random one and those whose weights are on this machine.

    Inception-v3 (2048 features) and DINOv2 ViT-S/14 (384) count as present if torch's hub folder holds their weights,
    of DINOv2 its repository as well. Nothing is downloaded.
    """
    hub = Path(torch.hub.get_dir())
    found = {"random network": random_network(channels)}
    if (weights := hub / "checkpoints" / INCEPTION).is_file():
        inception = inception_v3(weights=None, init_weights=False)
        inception.load_state_dict(torch.load(weights, weights_only=True))
        inception.fc = nn.Identity()
        found["Inception-v3"] = Photographs(inception, 299).eval()
    if (hub / DINO).is_dir() and (hub / "checkpoints" / DINO_WEIGHTS).is_file():
        found["DINOv2"] = Photographs(torch.hub.load(str(hub / DINO), "dinov2_vits14", source="local"), 224).eval()
    return found


@torch.no_grad()
def extract(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return the features, float32 (n, d), of uint8 (n, S, S, C) images."""
    network = network.to(device())
    batches = (to_tensor(images[start : start + BATCH]).to(device()) for start in range(0, len(images), BATCH))
    return torch.cat([network(batch).float().cpu() for batch in batches]).numpy()


def extract_all(
    sets: dict[str, ImageSet], folder: Path, share: tuple[int, int] = (0, 1)
) -> dict[str, dict[str, np.ndarray]] | None:
    """Return the features of all images in all networks, float64: network -> set -> (n, d).

    Ranks share pieces of 512 images as they share classifiers (`share`: number of this rank, and of all); each piece is
    a file in `folder`, and one that exists is not made again. The pieces are the same for any number of ranks, and so
    are the figures. All ranks but the last to finish get None.
    """
    # Every piece of every set in every network, and the file that keeps it.
    by_name = networks(next(iter(sets.values())).images.shape[-1])
    pieces = {
        (network, name, start): folder / f"{network.replace(' ', '-')}_{name}_{start:07d}.npy"
        for network in by_name
        for name, images in sets.items()
        for start in range(0, len(images), PIECE)
    }
    # This rank's share of what is missing.
    folder.mkdir(exist_ok=True)
    for (network, name, start), path in list(pieces.items())[share[0] :: share[1]]:
        if not path.is_file():
            with atomic.replacing(path) as file:
                np.save(file, extract(by_name[network], sets[name].images[start : start + PIECE]))
    # All of them, where no other rank is still at work.
    if not all(path.is_file() for path in pieces.values()):
        return None
    return {
        network: {
            name: np.concatenate(
                [np.load(path) for (of, which, _), path in pieces.items() if (of, which) == (network, name)]
            ).astype(np.float64)
            for name in sets
        }
        for network in by_name
    }
