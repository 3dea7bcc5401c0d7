"""What the diffusion model learns: noising, target, weight, and the law of the timesteps.

Every objective is linear in latent and noise. At timestep k of T

    x = a x_0 + s n,    target = p x_0 + q n

with coefficients that depend on k alone:

    prediction type   a, s                               p, q     time input            source
    epsilon           a^2 = alpha_bar_k, s^2 = 1 - a^2   0, 1     k                     Ho et al. 2020, eq. 4 and 14
    v_prediction      the same                           -s, a    k                     Salimans and Ho 2022, app. D
    sample            the same                           1, 0     k                     the same, section 4
    flow_matching     s = (k + 1) / T, a = 1 - s         -1, 1    k + 1                 Liu et al. 2023, eq. 1

The SNR is a^2 / s^2. Where x is given, an error of the target is (p - q a / s) times one of x_0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from mdaug.pipeline.schedulers import FLOW, build_scheduler
from mdaug.training.options_ldm import LDMConfig
from shards.order import random_at

STREAM_NOISE, STREAM_TIMESTEP, STREAM_LABEL_DROP, STREAM_CONDITION_DROP = 2, 3, 4, 6  # see shards/order.py


@dataclass(frozen=True)
class TimestepLaw:
    """Position of a training sample -> its timestep, a function of (seed, position) alone."""

    seed: int
    timesteps: int
    """T."""
    logit_normal: tuple[float, float] | None = None
    """Mean and deviation of log(t / (1 - t)), t = k / T in (0, 1) (Esser et al. 2024, section 3.1); None is uniform."""

    @classmethod
    def of(cls, config: LDMConfig) -> TimestepLaw:
        """Return the law of a configuration."""
        normal = (config.logit_mean, config.logit_std) if config.timestep_sampling == "logit_normal" else None
        return cls(config.seed, config.num_train_timesteps, normal)

    def draw(self, position: int) -> int:
        """Return the timestep in [0, T)."""
        random = random_at(self.seed, STREAM_TIMESTEP, position)
        if self.logit_normal is None:
            return int(random.integers(self.timesteps))
        t = 1 / (1 + math.exp(-random.normal(*self.logit_normal)))
        return min(int(t * self.timesteps), self.timesteps - 1)


class Noised(NamedTuple):
    """A batch as the network sees it."""

    sample: torch.Tensor
    """Noisy latents (B, C, h, w)."""
    time: torch.Tensor
    """The network's time input, (B,): the timestep of the samplers."""
    target: torch.Tensor
    """The prediction it should make, (B, C, h, w)."""


class Objective:
    """The coefficients of every timestep, on one device.

    Args:
        config: prediction type, noise schedule and weighting.
        device: where the batches are.
    """

    def __init__(self, config: LDMConfig, device: torch.device):
        timesteps = torch.arange(config.num_train_timesteps)
        if config.prediction_type == FLOW:
            time = timesteps + 1
            sigma = time.double() / config.num_train_timesteps
            signal = 1 - sigma
        else:
            scheduler = build_scheduler(
                "ddpm",
                config.beta_schedule,
                config.prediction_type,
                config.num_train_timesteps,
                config.rescale_betas_zero_snr,
            )
            alpha_bar = scheduler.alphas_cumprod.double()
            signal, sigma, time = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), timesteps
        zero, one = torch.zeros_like(signal), torch.ones_like(signal)
        of_latent, of_noise = {
            "epsilon": (zero, one),
            "v_prediction": (-sigma, signal),
            "sample": (one, zero),
            FLOW: (-one, one),
        }[config.prediction_type]
        weight = one
        if config.min_snr_gamma is not None:
            # min(SNR, gamma) on the error of x_0 (Hang et al. 2023, section 3.4), expressed in that of the target.
            snr = (signal / sigma) ** 2
            weight = snr.clamp(max=config.min_snr_gamma) / (of_latent - of_noise * signal / sigma) ** 2
        self.time = time.to(device)
        self.signal, self.sigma, self.of_latent, self.of_noise, self.weight = (
            values.float().to(device) for values in (signal, sigma, of_latent, of_noise, weight)
        )

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> Noised:
        """Return what the network sees of normalised latents, noise (both (B, C, h, w)) and timesteps (B,)."""
        a, s, p, q = self._coefficients(timestep)
        return Noised(a * latent + s * noise, self.time[timestep], p * latent + q * noise)

    def denoised(self, prediction: torch.Tensor, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the latents, (B, C, h, w), that predictions for noisy latents at timesteps (B,) stand for."""
        a, s, p, q = self._coefficients(timestep)
        return (s * prediction - q * sample) / (s * p - q * a)

    def target_of(self, latent: torch.Tensor, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the predictions for noisy latents at timesteps (B,) that stand for the latents; undoes `denoised`."""
        a, s, p, q = self._coefficients(timestep)
        return p * latent + q * (sample - a * latent) / s

    def _coefficients(self, timestep: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a, s, p and q of timesteps (B,), each (B, 1, 1, 1)."""
        of_each = (self.signal, self.sigma, self.of_latent, self.of_noise)
        return tuple(values[timestep].view(-1, 1, 1, 1) for values in of_each)


VALIDATION_SEED = 20_000_003  # validation noise is the same in every run, whatever its seed


class Diffuse:
    """Latent of a position -> network input and target ingredients; travels to the data loading workers.

    Noise, timestep, label drop and condition drop come from (seed, position) alone. A sample without its class is shown
    without its conditions, too: that is the unguided prediction of classifier-free guidance. Beyond that all conditions
    are dropped together, and each on its own: any of them may be left out when sampling.
    """

    def __init__(self, mean: list[float], std: list[float], config: LDMConfig, num_classes: int):
        self.mean = np.asarray(mean, dtype=np.float32)[:, None, None]
        self.std = np.asarray(std, dtype=np.float32)[:, None, None]
        self.seed, self.timesteps, self.law = config.seed, config.num_train_timesteps, TimestepLaw.of(config)
        self.label_dropout, self.null_label = config.label_dropout, num_classes
        self.condition_dropout = config.condition_dropout

    def __call__(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return {"latent": normalised, "noise", "timestep", "label"} of a training position, and "conditions" and
        "augment" where the sample has them."""
        dropped = sample["label"] == self.null_label
        dropped |= random_at(self.seed, STREAM_LABEL_DROP, position).random() < self.label_dropout
        timestep = self.law.draw(position)
        item = self._item(sample, self.seed, position, timestep, self.null_label if dropped else sample["label"])
        if "augment" in sample:
            item["augment"] = sample["augment"]
        if "conditions" in item:
            draws = random_at(self.seed, STREAM_CONDITION_DROP, position).random(1 + len(item["conditions"]))
            hidden = draws < self.condition_dropout
            hidden = dropped | hidden[0] | hidden[1:]
            item["conditions"] = np.where(hidden, np.float32(np.nan), item["conditions"])
        return item

    def validation(self, sample: dict[str, Any], position: int) -> dict[str, Any]:
        """Return the same with fixed noise and timesteps spread evenly over [0, T), and the label kept."""
        golden = (math.sqrt(5) - 1) / 2  # multiples of the golden ratio modulo 1 fill the interval evenly
        timestep = int((position * golden % 1) * self.timesteps)
        return self._item(sample, VALIDATION_SEED, position, timestep, sample["label"])

    def _item(self, sample: dict[str, Any], seed: int, position: int, timestep: int, label: int) -> dict[str, Any]:
        latent = (sample["array"] - self.mean) / self.std
        noise = random_at(seed, STREAM_NOISE, position).standard_normal(latent.shape, dtype=np.float32)
        item = {"latent": latent, "noise": noise, "timestep": timestep, "label": label}
        return {**item, "conditions": sample["conditions"]} if "conditions" in sample else item
