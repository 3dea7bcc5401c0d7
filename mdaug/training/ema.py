"""Exponential moving average of the weights, in fp32, its length in samples."""

from __future__ import annotations

import copy

import torch
from torch import nn

from mdaug.training.engine import Engine


class EMA:
    """A copy of a network whose fp32 weights follow the trained ones with a half-life in samples.

    Over the first samples the half-life is shortened to `warmup` times the samples seen, so that the
    average forgets the initial weights (Karras et al. 2022, "Elucidating the design space of
    diffusion-based generative models", training settings).

    Build it before DeepSpeed takes the network; the copy itself never enters an engine.
    """

    def __init__(self, network: nn.Module, half_life: float, warmup: float = 0.05):
        self.module = copy.deepcopy(network).float().eval().requires_grad_(False)
        self.half_life = half_life
        self.warmup = warmup

    def decay(self, samples: int, batch: int) -> float:
        """Return the weight of the old average after a step of `batch` samples that ends at `samples`."""
        half_life = min(self.half_life, self.warmup * samples)
        return 0.5 ** (batch / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, engine: Engine, samples: int, batch: int) -> None:
        """Follow the engine's fp32 master weights by one optimizer step. Every rank calls it."""
        targets = [value for _, value in engine.full_parameters()]
        torch._foreach_lerp_(list(self.module.parameters()), targets, 1 - self.decay(samples, batch))
