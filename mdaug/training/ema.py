"""Averages of the weights: exponential ones, power functions, and weights of averages of another length."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from mdaug import distributed
from mdaug.training import sharded_tensors
from mdaug.training.engine import Engine


def gamma(sigma_rel: float) -> float:
    """Return gamma of a relative width: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), its largest root."""
    precision = sigma_rel**-2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def decay(sigma_rel: float, samples: int, batch: int) -> float:
    """Return the weight of the old average after a step of `batch` samples that ends at `samples` (section 3.1)."""
    return (1 - batch / samples) ** (gamma(sigma_rel) + 1)


def inner_product(time_a: ArrayLike, gamma_a: ArrayLike, time_b: ArrayLike, gamma_b: ArrayLike) -> np.ndarray:
    """Return the integral over tau of p_gamma_a(tau; time_a) p_gamma_b(tau; time_b); the arguments broadcast."""
    time_a, gamma_a, time_b, gamma_b = (np.asarray(x, np.float64) for x in (time_a, gamma_a, time_b, gamma_b))
    shorter = np.minimum(time_a, time_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (shorter / time_a) ** gamma_a * (shorter / time_b) ** gamma_b * shorter / (time_a * time_b)


def solve(times: np.ndarray, widths: np.ndarray, time: float, width: float) -> tuple[np.ndarray, float]:
    """Return the weights of stored averages whose sum comes closest to another average, and how far off it is.

    Minimises the integral of the squared difference of the densities (appendix C), under the condition that the weights
    add up to one: weights that never changed come out as they are. The authors' code rescales them afterwards instead.

    Args:
        times: (n,) when the averages were stored, in samples.
        widths: (n,) their sigma_rel.
        time: end of the wanted average, at most the largest of `times`.
        width: its sigma_rel.

    Returns:
        Weights (n,) in float64, and the norm of the difference as a share of the norm of the wanted density.
    """
    times, gammas = np.asarray(times, np.float64) / time, np.array([gamma(w) for w in widths])
    wanted, count = gamma(width), len(times)
    # The conditions of the constrained minimum: the gradient vanishes up to the multiplier of the constraint.
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = inner_product(times[:, None], gammas[:, None], times, gammas)
    system[count, count] = 0
    target = np.append(inner_product(times, gammas, 1, wanted), 1)
    weights = np.linalg.lstsq(system, target, rcond=None)[0][:count]
    norm = inner_product(1, wanted, 1, wanted)
    squared = norm - 2 * weights @ target[:count] + weights @ system[:count, :count] @ weights
    return weights, float(np.sqrt(max(squared, 0) / norm))


MOST_STEPS = 8  # of the optimizer between two updates of the averages
HALF_LIFE = "half-life"  # the average that validates, samples and is exported; the others are named by their width


class EMA:
    """Averages that follow a network: one with a half-life, and power functions for reconstruction afterwards.

    Over the first samples the half-life is shortened to `warmup` times the samples seen, so that the
    average forgets the initial weights (Karras et al. 2022, "Elucidating the design space of
    diffusion-based generative models", training settings). Power functions (see `decay`) need no warm-up.

    A rank holds 4 bytes per parameter and average, divided by the number of ranks. Build it before DeepSpeed takes
    the network; its copy never enters an engine.
    """

    def __init__(self, network: nn.Module, half_life: float, profiles: Sequence[float] = (), warmup: float = 0.05):
        self.half_life, self.warmup = half_life, warmup
        self.profiles = {f"{width:g}": width for width in profiles}
        self._network = copy.deepcopy(network).float().eval().requires_grad_(False).to(distributed.device())
        self._names = [name for name, _ in self._network.named_parameters()]
        self._shapes = [parameter.shape for parameter in self._network.parameters()]
        self.averages = {
            name: [sharded_tensors.own_part(parameter.data).clone() for parameter in self._network.parameters()]
            for name in (HALF_LIFE, *self.profiles)
        }
        self._release()

    def decay(self, samples: int, batch: int) -> float:
        """Return the weight of the old half-life average after a step of `batch` samples that ends at `samples`."""
        half_life = min(self.half_life, self.warmup * samples)
        return 0.5 ** (batch / max(half_life, 1e-8))

    def due(self, samples: int, averaged: int, batch: int) -> bool:
        """Return whether averages that followed at `averaged` samples do so at `samples`, by steps of `batch`.

        The longer the half-life, the more steps at once, up to MOST_STEPS: never more than a sixteenth of it.
        """
        steps = int(min(self.half_life, self.warmup * samples) / (16 * batch))
        return samples - averaged >= max(1, min(steps, MOST_STEPS)) * batch

    @torch.no_grad()
    def update(self, engine: Engine, samples: int, batch: int) -> None:
        """Follow the engine's fp32 master weights over the last `batch` samples. Every rank calls it."""
        targets = list(engine.master_shards())
        for shards in self.averages.values():  # in memory as the weights lie, which the engine may have changed
            for index, target in enumerate(targets):
                if shards[index].stride() != target.stride():
                    shards[index] = torch.empty_like(target).copy_(shards[index])
        torch._foreach_lerp_(self.averages[HALF_LIFE], targets, 1 - self.decay(samples, batch))
        for name, width in self.profiles.items():
            torch._foreach_lerp_(self.averages[name], targets, 1 - decay(width, samples, batch))

    @contextlib.contextmanager
    def network(self) -> Iterator[nn.Module]:
        """Yield the network with the half-life average as its weights, whole on every rank; every rank calls it.

        Outside the `with` block the weights are gone: on several ranks no memory is held for them.
        """
        averages = zip(self._network.parameters(), self.averages[HALF_LIFE], self._shapes, strict=True)
        try:
            for parameter, shard, shape in averages:
                parameter.data = sharded_tensors.gather(shard, shape)
            yield self._network
        finally:
            self._release()

    def _release(self) -> None:
        for parameter in self._network.parameters():
            parameter.data = parameter.data.new_empty(0)

    def state(self) -> dict[str, torch.Tensor]:
        """Return this rank's shards by "<average>/<parameter>", one-dimensional, not copied where contiguous."""
        return {
            f"{average}/{name}": shard.flatten()
            for average, shards in self.averages.items()
            for name, shard in zip(self._names, shards, strict=True)
        }

    def load(self, reader: sharded_tensors.Reader) -> None:
        """Restore the shards, whatever number of ranks has written them."""
        for average, shards in self.averages.items():
            for name, shard, shape in zip(self._names, shards, self._shapes, strict=True):
                own = distributed.rank(), distributed.world_size()
                read = reader.read(f"{average}/{name}", shape.numel(), *own)
                shard.copy_(read.view(shard.shape))
