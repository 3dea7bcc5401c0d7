"""The learning rate of an optimizer step."""

from __future__ import annotations

import math

from mdaug.training.options import TrainingConfig
from mdaug.training.options_ldm import DiffusionConfig
from mdaug.training.options_vqvae import VQVAEConfig


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `steps`.

    train-vqvae: constant, as in the original scheme, or half a cosine to 0 (`lr_schedule`). train-ldm and distil:
    linear warm-up over `warmup_steps`, at most a tenth of the run, then half a cosine to 0.
    """
    if isinstance(config, VQVAEConfig) and config.lr_schedule == "constant":
        return config.lr
    warmup = min(config.warmup_steps, steps // 10) if isinstance(config, DiffusionConfig) else 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
