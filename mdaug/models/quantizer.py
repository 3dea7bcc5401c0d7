"""The codebook during training: nearest code, commitment loss, EMA updates, restart of dead codes.

The saved model is a stock diffusers VQModel. Training owns its quantizer because the stock one puts
the commitment weight on the codebook's term, starts all codes near the origin, and lets unused codes
die (reference: van den Oord et al. 2017, "Neural discrete representation learning", appendix A.1 for
the EMA updates).

The codes are buffers, not parameters: no optimizer touches them, they stay fp32 under every
precision, and they are whole on every rank under every ZeRO stage.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import nn
from torch.nn import functional

from mdaug import distributed
from mdaug.distributed import sum_over_ranks
from shards.order import random_at

# Steps on a GPU between looks for dead codes, whose answer waits for the device. With the default decay a code that
# nobody chooses any more takes 350 steps to die.
LOOK_EVERY = 10
STREAM_CODEBOOK = 5  # see shards/order.py


class Codebook(nn.Module):
    """K codes of dimension d that follow the encoder outputs assigned to them.

    Args:
        num_codes: K.
        dim: d, the channels of a latent.
        commitment: weight beta of the encoder's term, beta |z - sg(e)|^2.
        decay: share of the old statistics kept per optimizer step.
        dead_below: a code whose EMA count falls below this share of the mean count is restarted.
        gradient: "straight_through" copies the gradient at the code to the vector; "rotation" turns and scales it
            by what turns and scales the vector onto its code (Fifty et al. 2024, "Restructuring vector quantization
            with the rotation trick", equations 3-5).
    """

    codes: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        commitment: float = 0.25,
        decay: float = 0.99,
        dead_below: float = 0.03,
        gradient: str = "straight_through",
    ):
        super().__init__()
        self.gradient = gradient
        self.commitment, self.decay, self.dead_below = commitment, decay, dead_below
        self.register_buffer("codes", torch.zeros(num_codes, dim))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, dim))
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # (vectors, indices) of the open optimizer step

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantize encoder outputs.

        Args:
            z: (B, d, h, w).

        Returns:
            Codes with gradients to z, like z; indices (B, h, w), int64; the commitment
            loss, a fp32 scalar. Distances and losses are fp32 whatever the precision of z.
        """
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.float().movedim(1, -1)
            flat = vectors.reshape(-1, vectors.shape[-1])
            # argmin |z - e|^2 = argmin |e|^2 - 2 z.e
            scores = torch.addmm(self.codes.square().sum(1), flat, self.codes.T, alpha=-2)
            indices = scores.argmin(1)
            nearest = functional.embedding(indices, self.codes).view_as(vectors)
            loss = self.commitment * functional.mse_loss(vectors, nearest)
            if self.training:
                self._seen.append((flat.detach(), indices))
            if self.gradient == "rotation":
                quantized = _rotate(vectors, nearest)
            else:
                quantized = vectors + (nearest - vectors).detach()
        return quantized.movedim(-1, 1).to(z.dtype), indices.view(vectors.shape[:-1]), loss

    @torch.no_grad()
    def start_from(self, vectors: torch.Tensor, seed: int) -> None:
        """Place the codes by k-means over encoder outputs (N, d), which must be the same on all ranks.

        The start is k-means++ (Arthur and Vassilvitskii 2007): a uniform draw would be mostly floor.
        """
        rng = random_at(seed, STREAM_CODEBOOK, 0)
        count = 64 * len(self.codes)
        data = vectors.double().cpu().numpy()
        data = data[rng.integers(len(data), size=count)] if len(data) > count else data
        # A little noise keeps the equal vectors of the floor, and of tiny sets, from making empty clusters.
        data = np.tile(data, (-(-2 * len(self.codes) // len(data)), 1))
        data = data + 1e-4 * data.std() * rng.standard_normal(data.shape)
        codes = data[[rng.integers(len(data))]]
        distance = np.square(data - codes[0]).sum(1)
        while len(codes) < len(self.codes):
            farther = data[rng.choice(len(data), p=distance / distance.sum())]
            codes = np.vstack([codes, farther])
            distance = np.minimum(distance, np.square(data - farther).sum(1))
        codes, _ = kmeans2(data, codes, iter=10, minit="matrix", missing="warn")
        self._place(torch.arange(len(self.codes)), torch.from_numpy(codes).to(self.codes))
        self._seen.clear()

    def start_at(self, codes: torch.Tensor) -> None:
        """Take the codes (K, d) of a trained model."""
        self._place(torch.arange(len(self.codes)), codes.to(self.codes))

    @torch.no_grad()
    def update(self, seed: int, step: int) -> None:
        """Follow the vectors seen since the last update, then restart dead codes; every rank calls it.

        The statistics are summed over micro batches and ranks first, so the codes are the same on all
        ranks and, up to the order of sums, for any number of them.
        """
        micro_batches = [flat for flat, _ in self._seen]
        vectors, indices = torch.cat(micro_batches), torch.cat([index for _, index in self._seen])
        self._seen.clear()
        # One sum for counts and vectors; torch.bincount would wait for the device.
        both = torch.cat([self.counts[:, None], self.sums], dim=1).zero_()
        both.index_add_(0, indices, torch.cat([torch.ones_like(vectors[:, :1]), vectors], dim=1))
        both = sum_over_ranks(both)
        # A step that is not finite leaves the codes as they are, as it leaves the weights.
        both = torch.where(both.isfinite().all(), both, torch.cat([self.counts[:, None], self.sums], dim=1))
        self.counts.lerp_(both[:, 0], 1 - self.decay)
        self.sums.lerp_(both[:, 1:], 1 - self.decay)
        self.codes.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])
        if self.codes.is_cuda and step % LOOK_EVERY:
            return
        dead = (self.counts < self.dead_below * self.counts.mean()).nonzero()[:, 0]
        if len(dead) > 0:  # the same decision on all ranks: the counts are reduced
            self._restart(dead, torch.stack(micro_batches), random_at(seed, STREAM_CODEBOOK, step + 1))

    def _restart(self, dead: torch.Tensor, vectors: torch.Tensor, rng: np.random.Generator) -> None:
        """Move codes that hardly any vector chooses onto encoder outputs of this step.

        `vectors` is (micro batches, vectors of one, d) of this rank. Among vectors drawn at random those
        that the codes serve worst are likelier: a uniform draw would be mostly floor, which has its code.
        """
        ranks = distributed.world_size()
        everyone = distributed.gather_over_ranks(vectors).view(ranks, *vectors.shape)
        in_order_of_position = everyone.transpose(0, 1).reshape(-1, vectors.shape[-1])
        drawn = in_order_of_position[rng.integers(len(in_order_of_position), size=8 * len(self.codes))]
        error = torch.cdist(drawn, self.codes).amin(1).square().double().cpu().numpy() + 1e-12
        chosen = rng.choice(len(drawn), size=len(dead), replace=False, p=error / error.sum())
        self._place(dead, drawn[chosen])

    def _place(self, which: torch.Tensor, codes: torch.Tensor) -> None:
        """Set some codes, with statistics as if each had its fair share of vectors."""
        share = self.counts.mean()
        self.codes[which] = codes
        self.counts[which] = share
        self.sums[which] = codes * share


def _rotate(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return `codes` as a constant rotation and scaling of `vectors`, both (..., d).

    With unit vectors e, q and r of vector, code and their sum, R = I - 2 r r^T + 2 q e^T turns e onto q.
    """
    with torch.no_grad():
        e, q = functional.normalize(vectors, dim=-1), functional.normalize(codes, dim=-1)
        r = functional.normalize(e + q, dim=-1)
        scale = codes.norm(dim=-1, keepdim=True) / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    turned = vectors - 2 * (vectors * r).sum(-1, keepdim=True) * r + 2 * (vectors * e).sum(-1, keepdim=True) * q
    return scale * turned


def code_usage(counts: torch.Tensor) -> tuple[float, float]:
    """Return (perplexity, share of codes used) of code counts (K,) over a whole data set.

    Perplexity is exp(entropy) of the code frequencies: K when all codes are used alike, 1 when one
    code serves all.
    """
    frequency = counts.double() / counts.sum()
    entropy = -(frequency * frequency.clamp_min(1e-300).log()).sum()
    return float(entropy.exp()), float((counts > 0).double().mean())
