"""How alike two versions of an image are (PSNR to Doppler envelopes), and how varied the images of a class are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from mdaug.measures.image_set import ImageSet
from mdaug.models.perceptual import PerceptualLoss
from shards.colormap import colormap, detect

PSNR_LIMIT = 100.0  # dB, stands for "identical", whose PSNR is infinite
SIGMA, RADIUS = 1.5, 5  # the Gaussian window of 11 x 11 pixels
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11  # pixels that the coarsest scale must have
ABOVE_FLOOR = 16  # levels of 255 below which nothing is signal
ENVELOPE = 0.05  # share of a column's signal beyond each envelope
PAIRS = 100  # of each class, whose mean MS-SSIM is its diversity

# Measure -> (unit, which value is the worst). level_psnr is that of the levels behind the colours of a colour map.
MEASURES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "psnr": ("dB", min),
    "level_psnr": ("dB", min),
    "ssim": ("", min),
    "ms_ssim": ("", min),
    "lpips": ("", max),
    "sharpness": ("", lambda values: max(values, key=lambda value: abs(math.log(max(value, 1e-9))))),
    "envelope": ("bins", max),
}


def measure(
    originals: np.ndarray, copies: np.ndarray, floor: list[int], lpips: PerceptualLoss | None
) -> dict[str, np.ndarray]:
    """Return measure -> values (n,) of all MEASURES but level_psnr, and without LPIPS where there is no network for it.

    Args:
        originals: uint8 (n, H, W, C).
        copies: likewise.
        floor: the colour of "no signal", C values 0 to 255.
        lpips: its network, or None.
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


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """Return uint8 images (n, H, W, C) as a tensor (n, C, H, W), values 0 to 255."""
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy())


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
    """Return the energy of the differences between neighbouring pixels, copy / original; below 1 is blurred.

    Both energies include that of rounding to whole levels, 2 x 1/12 per difference, so that a picture without any
    detail has a ratio, too.
    """
    _, height, width, channels = originals.shape
    rounding = channels * ((height - 1) * width + height * (width - 1)) / 6

    def energy(images: np.ndarray) -> np.ndarray:
        pixels = images.astype(np.float64)
        return sum(np.square(np.diff(pixels, axis=axis)).sum(axis=(1, 2, 3)) for axis in (1, 2))

    return (energy(copies) + rounding) / (energy(originals) + rounding)


def heights(images: np.ndarray, floor: list[int]) -> np.ndarray:
    """Return the signal above the floor, float (n, H, W), in levels of 255.

    Colours are inverted where the floor is that of a known colour map; otherwise the distance from the floor's colour
    counts.
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
    technique, van Dorp and Groen 2008). The mean is over both envelopes and the columns where the original has signal;
    a column of the copy without signal has its envelopes at the middle row.
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
