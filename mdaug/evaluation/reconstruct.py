"""`mdaug reconstruct`: what the VQ-VAE keeps of held-out images, beside what familiar losses of detail keep."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image

from mdaug import distributed
from mdaug.artifacts import find_vqvae, load_geometry, open_images, packing_options_of
from mdaug.config import as_dict
from mdaug.evaluation.options import ReconstructConfig
from mdaug.evaluation.report import pictures
from mdaug.images import to_tensor, to_uint8
from mdaug.measures import image_quality
from mdaug.measures.image_quality import MEASURES, as_tensor, psnr
from mdaug.measures.image_set import class_weights
from mdaug.models.latent_statistics import LatentStatistics
from mdaug.models.perceptual import PerceptualLoss
from mdaug.models.quantizer import code_usage
from mdaug.models.vqvae import load_vqvae
from shards import atomic, provenance
from shards.colormap import floor_of, paint
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.packed import packed_hash
from shards.progress import Progress
from shards.validation import Preflight

METRICS, TABLE, STRIP = "reconstruction.json", "reconstruction.txt", "reconstruction.png"
SCALE_IMAGES = 1024  # training images, evenly spread, over which the scale of the latents is measured
VQVAE = "VQ-VAE"  # row of the table

# What a VQ-VAE should reach.
PSNR_DB = 28.0
CODES_USED = 0.9
PERPLEXITY_PART = 3  # perplexity at least K over this
SHARPNESS = (0.9, 1.1)
STD = (0.98, 1.02)


def jpeg(image: np.ndarray) -> np.ndarray:
    """Return the image (H, W, C) after JPEG of quality 75 with halved chroma."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)).reshape(image.shape)


def smaller(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the image (H, W, C) after reduction by `factor` and enlargement to its size, both bilinear."""
    height, width, _ = image.shape
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    reduced = picture.resize((width // factor, height // factor), Image.Resampling.BILINEAR)
    return np.asarray(reduced.resize((width, height), Image.Resampling.BILINEAR)).reshape(image.shape)


# Losses of detail that everybody has seen, to read the measures of the VQ-VAE against.
FAMILIAR: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 75": jpeg,
    "half size": lambda image: smaller(image, 2),
    "quarter size": lambda image: smaller(image, 4),
}


def check(options: ReconstructConfig, where: Preflight) -> None:
    """Raise UserError where inputs that are there do not fit; earlier results are replaced."""
    if where.inputs_there:
        folder = find_vqvae(options.vqvae_path)
        size, packing = packing_options_of(folder)
        if packed_hash(options.data_dir, size, **packing) is not None:
            _open_split(options.data_dir, folder, options.split)


def run(options: ReconstructConfig) -> None:
    """Measure, print the table, and write JSON, table and picture strip.

    Raises:
        UserError: vqvae_path holds no VQ-VAE, or data_dir has no such split or images of another size than it takes.
    """
    assert options.output_dir is not None  # ReconstructConfig has a default for it
    # What to measure, and with what.
    folder = find_vqvae(options.vqvae_path)
    packed = open_images(options.data_dir, folder)
    images, trained = provenance.read(packed, "images"), provenance.read(folder, "vqvae")
    dataset = _open_split(packed, folder, options.split)
    vqvae = load_vqvae(folder).to(distributed.device())
    lpips, lpips_missing = None, None
    try:
        lpips = PerceptualLoss(options.perceptual_net, options.perceptual_weights).to(vqvae.device)
    except UserError as error:
        lpips_missing = str(error)
    # The figures.
    figures, worst = measure(
        vqvae, dataset, np.arange(len(dataset)), options.batch_size, familiar=FAMILIAR, lpips=lpips
    )
    figures["latents"]["scaled_std"] = _scaled_std(vqvae, packed / "train", figures["latents"], options.batch_size)
    figures = {
        "preset": options.preset or str(options.vqvae_path),
        "split": dataset.folder.name,
        "made_from": {"vqvae": trained["hash"], "images": images["hash"]},
        "same_images_as_training": trained["made_from"].get("images") == images["hash"],
        **figures,
        "lpips_missing": lpips_missing,
        "goals": goals(figures),
        "config": as_dict(options),
    }
    # The files.
    options.output_dir.mkdir(parents=True, exist_ok=True)
    table = format_table(figures)
    print(table)
    atomic.write_text(options.output_dir / METRICS, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    atomic.write_text(options.output_dir / TABLE, table + "\n")
    pictures.save(options.output_dir / STRIP, pictures.strips(worst, figures["classes"]))
    print(f"wrote {options.output_dir}")


def measure(
    vqvae: VQModel,
    dataset: ShardDataset,
    indices: np.ndarray,
    batch_size: int,
    *,
    familiar: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    lpips: PerceptualLoss | None,
) -> tuple[dict[str, Any], list[list[np.ndarray]]]:
    """Reconstruct images of a set, at the size in which they are stored, and measure how much is kept.

    Images that are stored as levels of a colour map are measured in its colours, as they are looked at; of the VQ-VAE
    there is then also level_psnr, of the levels themselves.

    Args:
        vqvae: the model, on its device.
        dataset: the set.
        indices: int64 (n,), which of its images.
        batch_size: images reconstructed at once.
        familiar: name -> change of an image uint8 (H, W, C) to compare with.
        lpips: network of LPIPS, which is measured with it only.

    Returns:
        The figures: "count"; "image_shape"; "floor"; "rows": {"VQ-VAE" or name of a change: {measure: {"mean" over
        classes of their means, "worst"}}}; "classes": {class: {"count", measure: {"mean", "worst"}}}; "codes":
        {"number", "used", "perplexity"}; "latents": moments before quantization.
        Per class the worst image by SSIM: [original, reconstruction, difference], uint8 (H, W, C), the difference as
        128 + (reconstruction - original) / 2.
    """
    colormap = dataset.index.get("colormap")

    def colours(images: np.ndarray) -> np.ndarray:
        return np.stack([paint(image, colormap) for image in images])

    floor = floor_of(dataset, colormap)
    labels = dataset.labels[indices]
    parts: dict[str, list[dict[str, np.ndarray]]] = {row: [] for row in (VQVAE, *familiar)}
    code_counts = torch.zeros(vqvae.config.num_vq_embeddings, dtype=torch.float64, device=vqvae.device)
    moments = LatentStatistics()
    worst: dict[int, tuple[float, list[np.ndarray]]] = {}
    with Progress("reconstructing", len(indices), "image") as progress:
        for positions, stored, reconstructed, latents in _reconstructions(vqvae, dataset, indices, batch_size):
            # Latents and codes.
            moments.add(latents.cpu().numpy())
            codes = vqvae.quantize(latents)[2][2]
            code_counts += torch.bincount(codes.flatten(), minlength=len(code_counts))
            # The reconstructions and the familiar changes of the same images, in colours.
            shown, copies = colours(stored), colours(reconstructed)
            values = image_quality.measure(shown, copies, floor, lpips)
            if colormap is not None:
                values["level_psnr"] = psnr(as_tensor(stored), as_tensor(reconstructed)).numpy()
            parts[VQVAE].append(values)
            for row, change in familiar.items():
                changed = np.stack([change(image) for image in shown])
                parts[row].append(image_quality.measure(shown, changed, floor, lpips))
            # The worst of each class.
            scores = values["ssim"].tolist()
            for label, original, copy, score in zip(labels[positions].tolist(), shown, copies, scores, strict=True):
                if label not in worst or score < worst[label][0]:
                    difference = (128 + (copy.astype(np.int16) - original) // 2).astype(np.uint8)
                    worst[label] = (score, [original, copy, difference])
            progress.update(len(stored))
    values_of = {row: {m: np.concatenate([p[m] for p in of_row]) for m in of_row[0]} for row, of_row in parts.items()}
    perplexity, used = code_usage(code_counts.cpu())
    figures = {
        "count": len(indices),
        "image_shape": dataset.index["image_shape"],
        "floor": floor,
        "rows": {row: _summary(values, labels) for row, values in values_of.items()},
        "classes": {
            dataset.classes[label]: {
                "count": int((labels == label).sum()),
                **_summary(values_of[VQVAE], labels, label),
            }
            for label in sorted(worst)
        },
        "codes": {"number": len(code_counts), "used": used, "perplexity": perplexity},
        "latents": dict(moments.figures()),
    }
    return figures, [worst[label][1] for label in sorted(worst)]


@torch.no_grad()
def _reconstructions(
    vqvae: VQModel, dataset: ShardDataset, indices: np.ndarray, batch_size: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, torch.Tensor]]:
    """Yield (positions in indices, images and reconstructions uint8 (B, H, W, C), latents before quantization)."""
    for start in range(0, len(indices), batch_size):
        positions = slice(start, start + batch_size)
        stored = np.stack([dataset[i]["image"] for i in indices[positions].tolist()])
        latents = vqvae.encode(to_tensor(stored).to(vqvae.device)).latents
        yield positions, stored, to_uint8(vqvae.decode(latents).sample), latents


def _open_split(packed: Path, vqvae: Path, split: str) -> ShardDataset:
    """Return the images of a split; raises UserError where there are none or of another size than the VQ-VAE's."""
    trained = load_geometry(vqvae)["image_shape"]
    splits = ("test", "val") if split == "auto" else (split,)
    for name in splits:
        if (packed / name / "index.json").is_file():
            dataset = ShardDataset(packed / name)
            if len(dataset) and dataset.index["image_shape"] != trained:
                raise UserError(
                    f"{packed} holds images of shape {dataset.index['image_shape']}, the VQ-VAE {vqvae} was trained on "
                    f"{trained}; pack the images with that size"
                )
            if len(dataset):
                return dataset
    raise UserError(
        f"{packed} has no images in {' or '.join(splits)}; pack more images, or with a larger --val_fraction, or "
        "choose another --split"
    )


@torch.no_grad()
def _scaled_std(vqvae: VQModel, train: Path, latents: dict[str, Any], batch_size: int) -> list[float]:
    """Return the std per channel of held-out latents divided by that of training images, as the diffusion model does.

    It is 1 only as far as the training set represents the held-out images.
    """
    dataset, scale = ShardDataset(train), LatentStatistics()
    positions = range(0, len(dataset), -(-len(dataset) // SCALE_IMAGES))
    for start in range(0, len(positions), batch_size):
        images = np.stack([dataset[i]["image"] for i in positions[start : start + batch_size]])
        scale.add(vqvae.encode(to_tensor(images).to(vqvae.device)).latents.cpu().numpy())
    return (np.array(latents["std"]) / np.maximum(scale.figures()["std"], 1e-12)).tolist()


def _summary(
    values: dict[str, np.ndarray], labels: np.ndarray, label: int | None = None
) -> dict[str, dict[str, float]]:
    """Return the mean over classes, which all weigh the same, and the worst value of each measure; or of one class."""
    own = labels == (labels if label is None else label)
    weights = class_weights(labels[own])
    return {
        name: {"mean": float(weights @ column[own]), "worst": float(MEASURES[name][1](column[own].tolist()))}
        for name, column in values.items()
    }


def goals(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows {"figure", "measured", "goal", "reached"}: what a VQ-VAE should reach, and whether this one does.

    "reached" is None where a figure is reported only. Kurtosis and standard deviation are those of the channel that
    is farthest from a normal distribution.
    """
    image, codes = figures["rows"][VQVAE], figures["codes"]
    psnr_mean, sharpness = (image[name]["mean"] for name in ("psnr", "sharpness"))
    std = max(figures["latents"]["scaled_std"], key=lambda value: abs(math.log(max(value, 1e-12))))
    kurtosis = max(figures["latents"]["excess_kurtosis"], key=abs)
    perplexity = codes["number"] / PERPLEXITY_PART
    rows = [
        ("PSNR [dB]", psnr_mean, f">= {PSNR_DB:g}", psnr_mean >= PSNR_DB),
        ("codes used", codes["used"], f">= {CODES_USED:g}", codes["used"] >= CODES_USED),
        ("perplexity", codes["perplexity"], f">= {perplexity:.1f} (K/3)", codes["perplexity"] >= perplexity),
        ("sharpness", sharpness, "{:g} to {:g}".format(*SHARPNESS), SHARPNESS[0] <= sharpness <= SHARPNESS[1]),
        ("latent std after scaling", std, "{:g} to {:g}".format(*STD), STD[0] <= std <= STD[1]),
        ("latent excess kurtosis", kurtosis, "reported", None),
    ]
    return [dict(zip(("figure", "measured", "goal", "reached"), row, strict=True)) for row in rows]


def format_table(figures: dict) -> str:
    """Return the figures as text: means with the worst image in brackets, then the goals."""
    rows = {**figures["rows"], **{f"  {name}": entry for name, entry in figures["classes"].items()}}
    names = [name for name in MEASURES if name in figures["rows"][VQVAE]]
    width = max(len(row) for row in rows) + 2
    titles = [f"{name} [{MEASURES[name][0]}]" if MEASURES[name][0] else name for name in names]
    lines = [" " * width + "".join(f"{title:>18s}" for title in titles)]
    for row, entry in rows.items():
        pairs = [(entry[name]["mean"], entry[name]["worst"]) if name in entry else None for name in names]
        cells = [f"{_figure(pair[0])} ({_figure(pair[1])})" if pair else "" for pair in pairs]
        lines.append((f"{row:{width}s}" + "".join(f"{cell:>18s}" for cell in cells)).rstrip())
    codes, latents = figures["codes"], figures["latents"]
    lines.append(f"{figures['count']} images of {figures['split']}; mean over classes (worst image)")
    lines.append(
        f"codes: {100 * codes['used']:.1f} % of {codes['number']} used, perplexity {codes['perplexity']:.1f}; latents: "
        f"std {_list(latents['std'])}, excess kurtosis {_list(latents['excess_kurtosis'])}"
    )
    if figures["lpips_missing"]:
        lines.append("LPIPS is not measured: its weights are not on this machine ('make weights NET=vgg' fetches them)")
    if not figures["same_images_as_training"]:
        lines.append("the VQ-VAE was trained on another packing: some of these images may have been among its own")
    return "\n".join([*lines, "", format_goals(figures["goals"], figures["preset"])])


def format_goals(rows: list[dict[str, Any]], preset: str) -> str:
    """Return the rows of `goals` as text under the preset's name."""
    answers = {True: "yes", False: "no", None: ""}
    lines = [f"{f'to reach ({preset})':<32s}{'measured':>10s}  {'goal':<16s}{'reached'}"]
    for row in rows:
        answer = answers[row["reached"]]
        lines.append(f"{row['figure']:<32s}{_figure(row['measured']):>10s}  {row['goal']:<16s}{answer}".rstrip())
    return "\n".join(lines)


def _list(values: list[float]) -> str:
    return " ".join(map(_figure, values))


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10_000 else f"{value:.2e}"
