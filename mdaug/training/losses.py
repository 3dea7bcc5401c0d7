"""Distances of spectrograms and the adversarial losses. Everything is per image, (B,), and in fp32.

A loss per image makes the loss of a global batch its mean, however the batch is divided into micro
batches and ranks.
"""

from __future__ import annotations

import torch
from torch.nn import functional

EDGE_WINDOW = 16  # pixels; the windows overlap by half
SIGNAL_THRESHOLD = 16 / 127.5  # distance from the floor, in a channel of [-1, 1], above which a pixel is signal


def floor_in_range(floor: list[int], device: torch.device) -> torch.Tensor:
    """Return a floor of 8-bit levels as a tensor (C, 1, 1) in [-1, 1]."""
    return torch.tensor(floor, device=device, dtype=torch.float32)[:, None, None] / 127.5 - 1


def pixel_distance(reconstruction: torch.Tensor, images: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the mean squared ("l2") or absolute ("l1") error, (B,), of image pairs (B, C, H, W)."""
    loss = functional.mse_loss if kind == "l2" else functional.l1_loss
    return loss(reconstruction.float(), images.float(), reduction="none").flatten(1).mean(1)


def spectrogram_distance(
    reconstruction: torch.Tensor, images: torch.Tensor, floor: torch.Tensor, kind: str
) -> torch.Tensor:
    """Return the error over the pixels whose original is above the floor, (B,); 0 for an image without signal.

    More than half of a typical spectrogram is exactly the floor, which an average over all pixels
    serves first.

    Args:
        reconstruction: (B, C, H, W) in [-1, 1].
        images: the originals, likewise.
        floor: (C, 1, 1) in [-1, 1].
        kind: "l1" or "l2".
    """
    loss = functional.mse_loss if kind == "l2" else functional.l1_loss
    error = loss(reconstruction.float(), images.float(), reduction="none").mean(1)
    signal = ((images.float() - floor).abs().amax(1) > SIGNAL_THRESHOLD).float()
    return (error * signal).sum((1, 2)) / signal.sum((1, 2)).clamp_min(1)


def edge_distance(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return how far the strength of the edges is off, (B,), of image pairs (B, C, H, W) in [-1, 1].

    The strength in a window is the root of its mean squared difference of neighbouring pixels, along Doppler and along
    time apart, else ripple in one direction could stand for edges in the other; sum of both mean |E - E'| over the
    windows. A distance of pixels is least for the mean of all that the codes leave open, whose edges are soft. This one
    leaves open where in the window the edges lie, so it is least where they are as strong as those of the original.
    """

    def strength(pictures: torch.Tensor, axis: int) -> torch.Tensor:
        difference = torch.diff(pictures.float(), dim=axis)
        # a last row or column of zeros: windows of whole steps then reach every pixel
        energy = functional.pad(difference.square().mean(1, keepdim=True), (0, 0, 0, 1) if axis == 2 else (0, 1))
        window = min(EDGE_WINDOW, *energy.shape[2:])
        return (functional.avg_pool2d(energy, window, max(1, window // 2)) + 1e-4).sqrt()

    apart = [(strength(reconstruction, axis) - strength(images, axis)).abs().flatten(1).mean(1) for axis in (2, 3)]
    return apart[0] + apart[1]


def doppler_distance(reconstruction: torch.Tensor, images: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """Return how much signal lies at the wrong Doppler, averaged over the time columns, (B,).

    For each time column the signal's height above the floor, summed over Doppler from one end up to
    each bin, is compared: mean |C(f, t) - C'(f, t)|, where C runs from 0 to 1. That is the earth mover's
    distance of the two Doppler profiles in shares of the axis (Vallender 1974) where they hold equal
    signal, and grows with missing or added signal. In colour the height is the distance from the floor's
    colour, which rises along the usual colour maps only at first; it is exact for --image_mode gray.

    Args:
        reconstruction: (B, C, H, W) in [-1, 1]; rows are Doppler bins, columns are time.
        images: the originals, likewise.
        floor: (C, 1, 1) in [-1, 1].
    """

    def profile(pictures: torch.Tensor) -> torch.Tensor:
        height = ((pictures.float() - floor) / 2).square().mean(1).add(1e-6).sqrt()
        return height.cumsum(1) / height.shape[1]

    return (profile(reconstruction) - profile(images)).abs().mean((1, 2))


def hinge_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's hinge loss, (B,), from logits (B, 1, h, w) of originals and reconstructions."""
    return 0.5 * (functional.relu(1 - real.float()) + functional.relu(1 + fake.float())).flatten(1).mean(1)


def hinge_generator(fake: torch.Tensor) -> torch.Tensor:
    """Return the generator's loss, (B,), from logits (B, 1, h, w) of its reconstructions."""
    return -fake.float().flatten(1).mean(1)


def adaptive_weight(distance_gradient: torch.Tensor, adversarial_gradient: torch.Tensor) -> torch.Tensor:
    """Return |d distance / d x| / (|d adversarial / d x| + 1e-4), (B,), from gradients (B, C, H, W) at each image x.

    Esser et al. 2021, "Taming transformers for high-resolution image synthesis", equation 7, with the
    gradients at the reconstruction of each image rather than at the decoder's last layer: inside a
    DeepSpeed engine only the former can be had, and a weight per image depends on no batch.
    """
    lengths = [gradient.float().flatten(1).norm(dim=1) for gradient in (distance_gradient, adversarial_gradient)]
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(0, 1e4)
