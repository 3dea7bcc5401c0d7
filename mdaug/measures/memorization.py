"""Does the generator repeat its training images? Nearest-neighbour distances that a shift in time does not hide."""

from __future__ import annotations

import numpy as np
import torch

from mdaug.measures.image_set import class_weights, weighted_quantile

ROWS = 16  # Doppler bands that are compared
COLUMNS = 64  # most time steps that are compared
COPY = 2.0  # grey levels: nearer than this two 8-bit pictures differ by rounding and compression alone
CHUNK = 1 << 24  # values of a block of correlations


def nearest(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each query, the RMS distance in levels (0 to 255) to the nearest reference, its index, and the shift.

    The distance of two pictures is the least over all circular shifts along time: |a|^2 + |b|^2 - 2 max (a * b), the
    correlation a * b by FFT along the columns, summed over the bands. A copy that is shifted in time, as the label-safe
    transforms do, is found as well.

    Args:
        queries: uint8 levels (n, H, W), H a multiple of 16.
        references: uint8 levels (m, H, W).

    Returns:
        float64 (n,), int64 (n,) and float64 (n,) in [0, 1): the reference, moved to the right by that part of its
        width, is nearest to the query.
    """
    a, b = bands(queries), bands(references)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # (frequency, image, band): one matrix product per frequency correlates all pairs. float32 is enough to find them.
    spectra_a, spectra_b = (torch.fft.rfft(torch.from_numpy(x).float().to(device)).permute(2, 0, 1) for x in (a, b))
    energy = torch.from_numpy((b**2).sum(axis=(1, 2))).float().to(device)
    columns, block = a.shape[2], max(1, CHUNK // (len(b) * a.shape[2]))
    index, shift = np.empty(len(a), dtype=np.int64), np.empty(len(a), dtype=np.int64)
    for start in range(0, len(a), block):
        product = spectra_a[:, start : start + block] @ spectra_b.conj().transpose(1, 2)
        best, at = torch.fft.irfft(product, columns, dim=0).max(dim=0)
        chosen = (energy - 2 * best).argmin(dim=1)
        index[start : start + block] = chosen.cpu().numpy()
        shift[start : start + block] = at.gather(1, chosen[:, None])[:, 0].cpu().numpy()
    # Once more for the pairs found, without the cancellation in |a|^2 + |b|^2 - 2 a * b.
    difference = [x - np.roll(b[j], s, axis=1) for x, j, s in zip(a, index, shift, strict=True)]
    return np.sqrt(np.square(difference).mean(axis=(1, 2))), index, shift / columns


def bands(levels: np.ndarray) -> np.ndarray:
    """Return levels (n, H, W) as float64 (n, 16, w): means over 16 bands of rows, and over columns down to w <= 64."""
    n, height, width = levels.shape
    columns = max(c for c in range(1, min(width, COLUMNS) + 1) if width % c == 0)
    return levels.reshape(n, ROWS, height // ROWS, columns, width // columns).mean(axis=(2, 4))


def compare(
    train: np.ndarray,
    held_out: np.ndarray,
    held_out_labels: np.ndarray,
    synthetic: np.ndarray,
    synthetic_labels: np.ndarray,
    pairs: int = 10,
) -> dict:
    """Compare how near synthetic images and held-out real ones are to the training images; levels (n, H, W).

    Medians and shares weigh the classes that both sets have equally.

    Returns:
        medians in levels; `threshold`, the 1st percentile of held-out distances; `share_closer`, the share of
        synthetic images below it (0.01 is expected of a generator that is as far from the training images as new
        recordings are); `copies` of both sets; `pairs`, the nearest (synthetic, train), with `shifts` and `distances`.
    """
    to_synthetic, neighbour, shift = nearest(synthetic, train)
    to_held_out, _, _ = nearest(held_out, train)
    common = np.intersect1d(held_out_labels, synthetic_labels)
    of_held_out, of_synthetic = (class_weights(labels, common) for labels in (held_out_labels, synthetic_labels))
    threshold = weighted_quantile(to_held_out, of_held_out, 0.01)
    closest = np.argsort(to_synthetic, kind="stable")[:pairs]
    return {
        "synthetic_median": weighted_quantile(to_synthetic, of_synthetic, 0.5),
        "held_out_median": weighted_quantile(to_held_out, of_held_out, 0.5),
        "threshold": threshold,
        "share_closer": float(of_synthetic @ (to_synthetic < threshold)),
        "synthetic_copies": int((to_synthetic < COPY).sum()),
        "held_out_copies": int((to_held_out < COPY).sum()),
        "copies_share": float(of_synthetic @ (to_synthetic < COPY)),
        "pairs": [[int(i), int(neighbour[i])] for i in closest],
        "shifts": [float(shift[i]) for i in closest],
        "distances": [float(to_synthetic[i]) for i in closest],
    }
