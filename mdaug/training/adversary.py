"""The discriminator during training: beside the engine, never inside one.

Two DeepSpeed engines over one graph fail or are silently wrong. So the generator's engine sees only
the gradient at the reconstruction, and the discriminator is a plain fp32 module on every rank whose
gradients are averaged over the ranks once per optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mdaug import distributed
from mdaug.models.discriminator import PatchDiscriminator
from mdaug.training.losses import adaptive_weight, hinge_discriminator, hinge_generator
from mdaug.training.options_vqvae import VQVAEConfig

Distance = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]


class Adversary:
    """A PatchGAN with hinge loss, from sample `disc_start` on, and its AdamW.

    Args:
        config: options of the run.
        image_shape: [H, W, C].
        precision: "bf16" runs its convolutions in bf16; everything else in fp32, since fp16 gradients
            would need a loss scale of their own.
    """

    def __init__(self, config: VQVAEConfig, image_shape: list[int], precision: str):
        self.config, self.low_precision = config, precision == "bf16"
        height, width, channels = image_shape
        self.device = distributed.device()
        self.network: nn.Module = PatchDiscriminator(channels, (height, width), config.disc_channels).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.disc_lr or config.lr, betas=(0.5, 0.9), weight_decay=0.0
        )
        self.samples = 0
        self._micro_batches = 0

    @property
    def started(self) -> bool:
        """Whether the discriminator trains and counts yet."""
        return self.samples >= self.config.disc_start

    def loss(
        self, reconstruction: torch.Tensor, images: torch.Tensor, distance: Distance
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return mean(distance + weight x adversarial) for the generator, and add the discriminator's gradients.

        The gradient is taken at the reconstruction and handed to the engine as a product with it, so no
        graph of the discriminator or of LPIPS reaches the engine.

        Args:
            reconstruction: (B, C, H, W), with the engine's graph behind it.
            images: the originals, in [-1, 1].
            distance: returns the distance per image, (B,), and figures to log.
        """
        if not self.started:
            per_image, figures = distance(reconstruction, images)
            zero = torch.zeros((), device=images.device)
            return per_image.mean(), {**figures, "adversarial": zero, "adaptive_weight": zero, "discriminator": zero}
        at = reconstruction.detach().float().requires_grad_()
        per_image, figures = distance(at, images)
        (distance_gradient,) = torch.autograd.grad(per_image.sum(), at)
        adversarial = hinge_generator(self._logits(at))
        (adversarial_gradient,) = torch.autograd.grad(adversarial.sum(), at)
        weight = torch.full_like(adversarial, self.config.lambda_adversarial)
        if self.config.adaptive_weight:
            weight = weight * adaptive_weight(distance_gradient, adversarial_gradient)
        gradient = (distance_gradient + weight[:, None, None, None] * adversarial_gradient) / len(images)
        product = (reconstruction.float() * gradient).sum()
        value = (per_image + weight * adversarial).mean().detach()
        figures |= {"adversarial": adversarial.mean(), "adaptive_weight": weight.mean()}
        figures["discriminator"] = self._backward(images, at.detach())
        return value + product - product.detach(), figures

    def _backward(self, images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        loss = hinge_discriminator(self._logits(images), self._logits(reconstruction)).mean()
        total = loss
        if self.config.gradient_penalty > 0:
            total = total + 0.5 * self.config.gradient_penalty * self._penalty(images)
        total.backward()
        self._micro_batches += 1
        return loss.detach()

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            return self.network(images)

    def _penalty(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean squared gradient length at the originals, fp32 (R1; Mescheder et al. 2018, equation 9)."""
        real = images.detach().float().requires_grad_()
        with torch.autocast(self.device.type, enabled=False):
            logits = self.network(real).flatten(1).mean(1).sum()
        (gradient,) = torch.autograd.grad(logits, real, create_graph=True)
        return gradient.square().flatten(1).sum(1).mean()

    def step(self, samples: int) -> None:
        """Apply the gradients of an optimizer step's micro batches and ranks; every rank calls it.

        Args:
            samples: samples seen after that step.
        """
        self.samples = samples
        if self._micro_batches == 0:
            return
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = distributed.sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        flat /= self._micro_batches * distributed.world_size()
        flat = torch.where(flat.isfinite().all(), flat, 0.0)  # nothing is learnt from a step that is not finite
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._micro_batches = 0

    def state(self) -> dict[str, torch.Tensor]:
        """Return weights, optimizer state and sample count as tensors on the CPU."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        tensors["samples"] = torch.tensor(self.samples)
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
        self.samples = int(tensors["samples"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, moment = rest.partition(".")
                moments.setdefault(int(index), {})[moment] = value
        weights = {name.removeprefix("network."): v for name, v in tensors.items() if name.startswith("network.")}
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
