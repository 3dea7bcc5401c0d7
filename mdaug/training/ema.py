"""Averages of the weights, in fp32 from the fp32 master weights, every rank with its piece; lengths in samples."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from mdaug import distributed
from mdaug.training import pieces, power
from mdaug.training.engine import Engine

HALF_LIFE = "half-life"  # the average that validates, samples and is exported; the others are named by their width


class EMA:
    """Averages that follow a network: one with a half-life, and power functions for reconstruction afterwards.

    Over the first samples the half-life is shortened to `warmup` times the samples seen, so that the
    average forgets the initial weights (Karras et al. 2022, "Elucidating the design space of
    diffusion-based generative models", training settings). Power functions (see `power`) need no warm-up.

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
            name: [pieces.cut(parameter.data).clone() for parameter in self._network.parameters()]
            for name in (HALF_LIFE, *self.profiles)
        }
        self._release()

    def decay(self, samples: int, batch: int) -> float:
        """Return the weight of the old half-life average after a step of `batch` samples that ends at `samples`."""
        half_life = min(self.half_life, self.warmup * samples)
        return 0.5 ** (batch / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, engine: Engine, samples: int, batch: int) -> None:
        """Follow the engine's fp32 master weights by one optimizer step. Every rank calls it."""
        targets = list(engine.master_pieces())
        torch._foreach_lerp_(self.averages[HALF_LIFE], targets, 1 - self.decay(samples, batch))
        for name, width in self.profiles.items():
            torch._foreach_lerp_(self.averages[name], targets, 1 - power.decay(width, samples, batch))

    @contextlib.contextmanager
    def network(self) -> Iterator[nn.Module]:
        """Yield the network with the half-life average as its weights, whole on every rank; every rank calls it.

        Outside the `with` block the weights are gone: on several ranks no memory is held for them.
        """
        averages = zip(self._network.parameters(), self.averages[HALF_LIFE], self._shapes, strict=True)
        try:
            for parameter, piece, shape in averages:
                parameter.data = pieces.join(piece, shape)
            yield self._network
        finally:
            self._release()

    def _release(self) -> None:
        for parameter in self._network.parameters():
            parameter.data = parameter.data.new_empty(0)

    def state(self) -> dict[str, torch.Tensor]:
        """Return this rank's pieces by "<average>/<parameter>", not copied."""
        return {
            f"{average}/{name}": piece
            for average, own in self.averages.items()
            for name, piece in zip(self._names, own, strict=True)
        }

    def load(self, reader: pieces.Reader) -> None:
        """Restore the pieces, whatever number of ranks has written them."""
        for name, piece in self.state().items():
            piece.copy_(reader.read(name, distributed.rank(), distributed.world_size()))
