"""The discriminator of a distilled model: it judges latents by what the pretrained U-Net sees in them.

After Sauer et al., "Fast high-resolution image synthesis with latent adversarial diffusion distillation" (arXiv
2403.12015): latents are noised anew, the way down of the frozen pretrained U-Net turns them into features at every
level, and small heads tell real from made by these. So little is to be learnt from few images.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from mdaug import distributed
from mdaug.models.hybrid_unet import HybridUNet2DModel
from mdaug.training.adversary import Critic
from mdaug.training.losses import hinge_discriminator, hinge_generator

WIDTH, GROUPS = 64, 8  # channels of a head, and groups of its norm
LR, BETAS = 1e-3, (0.0, 0.99)


class FeatureHeads(nn.Module):
    """A head for each feature map: a logit per pixel, with a part for every class (Miyato and Koyama, ICLR 2018).

    Args:
        channels: of each feature map.
        num_labels: labels, that of no class included.
    """

    def __init__(self, channels: list[int], num_labels: int):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(GROUPS, count), nn.Conv2d(count, WIDTH, 1), nn.LeakyReLU(0.2))
            for count in channels
        )
        self.outs = nn.ModuleList(nn.Conv2d(WIDTH, 1, 1) for _ in channels)
        self.classes = nn.ModuleList(nn.Embedding(num_labels, WIDTH) for _ in channels)

    def forward(self, features: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Return logits (B, heads), each the mean over its map, positive for what looks real."""
        logits = []
        for head, out, classes, feature in zip(self.heads, self.outs, self.classes, features, strict=True):
            hidden = head(feature.float())
            of_class = (hidden * classes(labels)[:, :, None, None]).sum(1, keepdim=True) / WIDTH**0.5
            logits.append((out(hidden) + of_class).flatten(1).mean(1))
        return torch.stack(logits, dim=1)


class LatentAdversary(Critic):
    """Feature heads with hinge loss over a frozen copy of a U-Net.

    Args:
        unet: the pretrained U-Net.
        precision: "bf16" runs it in bf16; the heads work in fp32, since fp16 gradients would need a loss scale.
    """

    def __init__(self, unet: HybridUNet2DModel, precision: str):
        channels = list(unet.config.block_out_channels)
        super().__init__(FeatureHeads([*channels, channels[-1]], unet.num_classes + 1), LR, BETAS)
        self.unet = copy.deepcopy(unet).eval().requires_grad_(False).to(self.device)
        self.low_precision = precision == "bf16"

    def judge(
        self, made: tuple[torch.Tensor, torch.Tensor], real: torch.Tensor, time: torch.Tensor, given: dict
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the generator should lower and its gradient, and add the discriminator's gradients.

        Args:
            made: latents that were made, noised, (B, C, h, w), and what their gradient is taken at.
            real: latents of images, noised as much.
            time: the time input of both, (B,).
            given: "label", and "conditions" and "augment" where the model has them.

        Returns:
            The mean loss of the generator, its gradient, and the mean loss of the discriminator.
        """
        noised, at = made
        labels = given["label"]
        of_made = self._features(noised, time, given)
        value = hinge_generator(self.network(of_made, labels)).mean()
        (gradient,) = torch.autograd.grad(value, at)
        with torch.no_grad():
            of_real = self._features(real, time, given)
        of_made = [feature.detach() for feature in of_made]
        loss = hinge_discriminator(self.network(of_real, labels), self.network(of_made, labels)).mean()
        self.add_gradients(loss)
        return value.detach(), gradient, loss.detach()

    def _features(self, noised: torch.Tensor, time: torch.Tensor, given: dict) -> list[torch.Tensor]:
        extra = {name: given[name] for name in ("conditions", "augment") if name in given}
        with distributed.autocast("bf16" if self.low_precision else "no", self.device):
            return self.unet.features(noised, time, given["label"], **extra)
