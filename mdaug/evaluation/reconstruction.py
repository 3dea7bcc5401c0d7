"""How well the VQ-VAE keeps what it encodes: PSNR and SSIM of reconstructions of held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mdaug.evaluation.data import ImageSet
from mdaug.images import to_tensor, to_uint8
from shards.progress import Progress

PSNR_LIMIT = 100.0  # dB, stands for "identical", whose PSNR is infinite
SIGMA, RADIUS = 1.5, 5  # the Gaussian window of 11 x 11 pixels


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio in dB, (n,), of image pairs (n, C, H, W) with values 0 to 255."""
    mse = (first.double() - second.double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(255.0**2 / mse)).clamp(max=PSNR_LIMIT)


def ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity, (n,), of image pairs (n, C, H, W) with values 0 to 255, H and W >= 11.

    Windowed with a Gaussian of sigma 1.5 over 11 x 11 pixels, k1 = 0.01, k2 = 0.03, mean over windows inside the
    image and over channels: Wang et al., IEEE Trans. Image Processing 13 (2004), eq. 13-17.
    """
    luminance, contrast = ssim_parts(first.double(), second.double())
    return (luminance * contrast).mean(dim=(1, 2, 3))


def ssim_parts(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the luminance and the contrast-structure maps whose product is SSIM, over windows inside the image."""
    channels = a.shape[1]
    line = torch.exp(-0.5 * (torch.arange(-RADIUS, RADIUS + 1, dtype=a.dtype, device=a.device) / SIGMA) ** 2)
    line = line / line.sum()

    def window(x: torch.Tensor) -> torch.Tensor:
        rows = F.conv2d(x, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(rows, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_a, mean_b = window(a), window(b)
    var_a, var_b = window(a * a) - mean_a**2, window(b * b) - mean_b**2
    cov = window(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * cov + c2) / (var_a + var_b + c2)


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """Return uint8 images (n, H, W, C) as a tensor (n, C, H, W), values 0 to 255."""
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy())


@torch.no_grad()
def decoded(
    vqvae: Any, image: Callable[[int], np.ndarray], count: int, batch_size: int
) -> Iterator[tuple[range, np.ndarray, np.ndarray, torch.Tensor]]:
    """Yield (indices, originals, reconstructions, latents) of images 0 ... count - 1.

    Args:
        vqvae: a diffusers VQModel on its device.
        image: index -> uint8 (H, W, C).
        count: number of images.
        batch_size: images decoded at once.

    Yields:
        images as uint8 (B, H, W, C), latents before quantization as (B, c, h, w).
    """
    for start in range(0, count, batch_size):
        places = range(start, min(start + batch_size, count))
        originals = np.stack([image(i) for i in places])
        latents = vqvae.encode(to_tensor(originals).to(vqvae.device)).latents
        yield places, originals, to_uint8(vqvae.decode(latents).sample), latents


def reconstruction(vqvae_path: Path, held_out: ImageSet, batch_size: int) -> tuple[dict, list[list[np.ndarray]]]:
    """Reconstruct the held-out images with a VQ-VAE at the size they are stored in.

    Returns:
        the figures {"psnr", "ssim", "classes": [{"name", "count", "psnr", "psnr_worst", "ssim", "ssim_worst"}]}, and
        per class the worst image by SSIM as [original, reconstruction, difference], uint8 (H, W, C). The difference
        is drawn as 128 + (reconstruction - original) / 2.
    """
    from mdaug.models.vqvae import load_vqvae

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vqvae = load_vqvae(vqvae_path).to(device)
    scores = np.empty((len(held_out), 2))
    worst: dict[int, tuple[float, list[np.ndarray]]] = {}
    with Progress("reconstructions", len(held_out), "image") as progress:
        for places, originals, copies, _ in decoded(vqvae, held_out.original, len(held_out), batch_size):
            pair = as_tensor(originals), as_tensor(copies)
            scores[places.start : places.stop] = torch.stack([psnr(*pair), ssim(*pair)], dim=1).numpy()
            for i, original, copy in zip(places, originals, copies, strict=True):
                label, score = int(held_out.labels[i]), scores[i, 1]
                if label not in worst or score < worst[label][0]:
                    difference = 128 + (copy.astype(np.int16) - original.astype(np.int16)) // 2
                    worst[label] = (score, [original, copy, difference.astype(np.uint8)])
            progress.update(len(places))
    classes = [
        _class_figures(held_out.dataset.classes[label], scores[held_out.labels == label]) for label in sorted(worst)
    ]
    psnr_mean, ssim_mean = scores.mean(axis=0).tolist()
    figures = {"psnr": psnr_mean, "ssim": ssim_mean, "count": len(held_out), "classes": classes}
    return figures, [worst[label][1] for label in sorted(worst)]


def _class_figures(name: str, scores: np.ndarray) -> dict:
    (mean_psnr, mean_ssim), (worst_psnr, worst_ssim) = scores.mean(axis=0).tolist(), scores.min(axis=0).tolist()
    return {
        "name": name,
        "count": len(scores),
        "psnr": mean_psnr,
        "psnr_worst": worst_psnr,
        "ssim": mean_ssim,
        "ssim_worst": worst_ssim,
    }
