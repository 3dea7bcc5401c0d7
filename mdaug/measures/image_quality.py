"""How alike two pictures are (PSNR, SSIM, LPIPS, envelopes), and how unlike those of a class are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mdaug.images import to_tensor, to_uint8
from mdaug.measures.image_set import ImageSet
from mdaug.models.perceptual import PerceptualLoss
from shards.colormap import colormap, detect
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


MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11  # pixels that the coarsest scale must have
ABOVE_FLOOR = 16  # levels of 255 below which nothing is signal
ENVELOPE = 0.05  # share of a column's signal beyond each envelope

# measure: (unit, which value is the worst)
MEASURES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "psnr": ("dB", min),
    "ssim": ("", min),
    "ms_ssim": ("", min),
    "lpips": ("", max),
    "sharpness": ("", lambda values: max(values, key=lambda value: abs(math.log(max(value, 1e-9))))),
    "envelope": ("bins", max),
}


def measure(
    originals: np.ndarray, copies: np.ndarray, floor: list[int], lpips: PerceptualLoss | None
) -> dict[str, np.ndarray]:
    """Return measure -> values (n,); without LPIPS where its weights are not here.

    Args:
        originals: uint8 (n, H, W, C).
        copies: likewise.
        floor: the colour of "no signal", C values 0 to 255.
        lpips: the network, or None.
    """
    pair = as_tensor(originals), as_tensor(copies)
    values = {"psnr": psnr(*pair), "ssim": ssim(*pair), "ms_ssim": ms_ssim(*pair)}
    if lpips is not None:
        device = next(lpips.parameters()).device
        with torch.no_grad():
            values["lpips"] = lpips(*(image.float().to(device) / 127.5 - 1 for image in pair)).cpu()
    figures = {name: value.double().numpy() for name, value in values.items()}
    figures["sharpness"] = sharpness(originals, copies)
    figures["envelope"] = envelope_error(heights(originals, floor), heights(copies, floor))
    return figures


def ms_ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the multi-scale structural similarity, (n,), of image pairs (n, C, H, W) with values 0 to 255.

    Wang, Simoncelli and Bovik 2003, equation 7, with negative contrast terms cut to 0. Images too small for
    five scales get as many as leave 11 pixels, with the weights of those scaled to a sum of 1.
    """
    scales = min(len(MS_SSIM_WEIGHTS), int(np.log2(min(first.shape[2:]) / WINDOW)) + 1)
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    first, second = first.double(), second.double()
    result = torch.ones(len(first), dtype=torch.float64)
    for scale, weight in enumerate(weights):
        luminance, structure = ssim_parts(first, second)
        term = luminance * structure if scale == scales - 1 else structure
        result *= term.mean(dim=(1, 2, 3)).clamp_min(0) ** weight
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return result


def sharpness(originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Return the energy of the differences between neighbouring pixels, copy / original; below 1 is blurred."""

    def energy(images: np.ndarray) -> np.ndarray:
        pixels = images.astype(np.float64)
        return sum(np.square(np.diff(pixels, axis=axis)).sum(axis=(1, 2, 3)) for axis in (1, 2))

    return (energy(copies) + 1e-9) / (energy(originals) + 1e-9)


def heights(images: np.ndarray, floor: list[int]) -> np.ndarray:
    """Return the signal above the floor, float (n, H, W), in levels of 255.

    Colours are inverted where the floor tells their map, else the distance from the floor's colour counts.
    """
    name = detect(floor) if images.shape[-1] == 3 else None
    if name is not None:
        above = colormap(name).invert(images).astype(np.float64)
    else:
        above = np.abs(images.astype(np.float64) - np.array(floor)).max(axis=-1)
    return np.maximum(above - ABOVE_FLOOR, 0)


def envelope_error(originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Return how far the Doppler envelopes move, in bins (rows), (n,), from signals (n, H, W).

    The envelopes of a time column are the rows beyond which 5 % of its signal lie on either side (percentile
    technique, van Dorp and Groen 2008). Both count, over the columns where the original has signal; a column
    that lost all of it has its envelopes at the middle row.
    """

    def envelopes(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        total = signal.sum(axis=1, keepdims=True)
        share = np.cumsum(signal, axis=1) / np.maximum(total, 1e-9)
        rows = [(share < level).sum(axis=1) for level in (ENVELOPE, 1 - ENVELOPE)]
        present = total[:, 0] > 0
        upper, lower = (np.where(present, row, signal.shape[1] // 2) for row in rows)
        return upper, lower, present

    upper, lower, present = envelopes(originals)
    upper_copy, lower_copy, _ = envelopes(copies)
    moved = (np.abs(upper - upper_copy) + np.abs(lower - lower_copy)) / 2
    return (moved * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)


PAIRS = 100


def within_class(images: ImageSet, pairs: int = PAIRS) -> list[float | None]:
    """Return the mean MS-SSIM of random pairs of each class: higher is less diverse, 1 is one picture repeated.

    None for a class with fewer than two images.
    """
    figures: list[float | None] = []
    for label in range(len(images.dataset.classes)):
        members = np.flatnonzero(images.labels == label)
        if len(members) < 2:
            figures.append(None)
            continue
        rng = np.random.default_rng([label, len(members)])
        drawn = np.stack([rng.choice(members, 2, replace=False) for _ in range(pairs)])
        first, second = (torch.from_numpy(images.images[chosen]).movedim(-1, 1) for chosen in drawn.T)
        figures.append(float(ms_ssim(first, second).mean()))
    return figures
