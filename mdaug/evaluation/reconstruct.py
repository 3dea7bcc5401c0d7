"""`mdaug reconstruct`: what the VQ-VAE keeps of held-out images, beside what simpler losses of detail keep."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mdaug import config as configuration
from mdaug.artifacts import find_vqvae, load_geometry, open_images, packing_options_of
from mdaug.evaluation.options import ReconstructConfig
from shards import atomic, provenance
from shards.errors import UserError
from shards.validation import Preflight

if TYPE_CHECKING:
    from diffusers import VQModel

    from mdaug.models.latent_statistics import LatentStatistics
    from shards.dataset import ShardDataset


METRICS, TABLE, STRIP = "reconstruction.json", "reconstruction.txt", "reconstruction.png"
SCALE_IMAGES = 1024  # training images, evenly spread, over which the scale of the latents is measured


def check(options: ReconstructConfig, where: Preflight) -> None:
    """Raise UserError where inputs that are there do not fit; results of before are replaced."""
    from shards.packed import packed_hash

    if where.inputs_there:
        folder = find_vqvae(options.vqvae_path)
        size, packing = packing_options_of(folder)
        if packed_hash(options.data_dir, size, **packing) is not None:
            _fitting(options.data_dir, folder, options.split)


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


# What the same measures say of losses that everybody has seen.
SCALE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 75": jpeg,
    "half size": lambda image: smaller(image, 2),
    "quarter size": lambda image: smaller(image, 4),
}


def run(config: ReconstructConfig) -> None:
    """Measure, print the table, and write JSON, table and picture strip."""
    from mdaug.evaluation.report.pictures import save, strips

    folder = find_vqvae(config.vqvae_path)
    packed = open_images(config.data_dir, folder)
    images, vqvae = provenance.read(packed, "images"), provenance.read(folder, "vqvae")
    dataset = _fitting(packed, folder, config.split)
    figures, rows = _measure(folder, dataset, packed / "train", config)
    figures = {
        "preset": config.preset or str(config.vqvae_path),
        "split": dataset.folder.name,
        "made_from": {"vqvae": vqvae["hash"], "images": images["hash"]},
        "same_images_as_training": vqvae["made_from"].get("images") == images["hash"],
        **figures,
        "targets": targets(figures),
        "config": configuration.as_dict(config),
    }
    output = config.output_dir
    assert output is not None  # chosen by ReconstructConfig
    output.mkdir(parents=True, exist_ok=True)
    table = format_table(figures)
    print(table)
    atomic.write_text(output / METRICS, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    atomic.write_text(output / TABLE, table + "\n")
    worst = [{"name": name, "ssim_worst": entry["ssim"]["worst"]} for name, entry in figures["classes"].items()]
    save(output / STRIP, strips(rows, worst))
    print(f"wrote {output}")


def _fitting(packed: Path, vqvae: Path, split: str) -> ShardDataset:
    """Return the images of a split; raises UserError where there are none or of another size than the VQ-VAE's."""
    from shards.dataset import ShardDataset

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
    raise UserError(f"{packed} has no images in {' or '.join(splits)}; pack them again, or choose another --split")


def _scaled_std(model: VQModel, train: Path, latents: LatentStatistics, batch_size: int) -> list[float]:
    """Return the std per channel of `latents` once divided by that of the training images, as the diffusion model does.

    Held-out latents come out at 1 only as far as the training set speaks for them.
    """
    import torch

    from mdaug.images import to_tensor
    from mdaug.models.latent_statistics import LatentStatistics
    from shards.dataset import ShardDataset

    dataset, scale = ShardDataset(train), LatentStatistics()
    places = range(0, len(dataset), -(-len(dataset) // SCALE_IMAGES))
    for start in range(0, len(places), batch_size):
        images = np.stack([dataset[i]["image"] for i in places[start : start + batch_size]])
        with torch.no_grad():
            scale.add(model.encode(to_tensor(images).to(model.device)).latents.cpu().numpy())
    return (np.array(latents.figures()["std"]) / np.maximum(scale.figures()["std"], 1e-12)).tolist()


def _measure(
    folder: Path, dataset: ShardDataset, train: Path, config: ReconstructConfig
) -> tuple[dict, list[list[np.ndarray]]]:
    """Return the figures, and per class the worst image by SSIM as [original, reconstruction, difference]."""
    import torch

    from mdaug.measures.image_quality import decoded, measure
    from mdaug.models.latent_statistics import LatentStatistics
    from mdaug.models.perceptual import PerceptualLoss
    from mdaug.models.quantizer import code_usage
    from mdaug.models.vqvae import load_vqvae
    from shards.colormap import floor_of, paint
    from shards.progress import Progress

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_vqvae(folder).to(device)
    name = dataset.index.get("colormap")

    def picture(image: np.ndarray) -> np.ndarray:
        return paint(image, name)

    floor = floor_of(dataset, name)
    lpips, missing = None, None
    try:
        lpips = PerceptualLoss(config.perceptual_net, config.perceptual_weights).to(device)
    except UserError as error:
        missing = str(error)
    parts: dict[str, list[dict[str, np.ndarray]]] = {row: [] for row in ("VQ-VAE", *SCALE)}
    counts = torch.zeros(model.config.num_vq_embeddings, dtype=torch.float64, device=device)
    latents = LatentStatistics()
    worst: dict[int, tuple[float, list[np.ndarray]]] = {}
    with Progress("reconstructing", len(dataset), "image") as progress:
        for places, originals, copies, encoded in decoded(
            model, lambda i: dataset[i]["image"], len(dataset), config.batch_size
        ):
            latents.add(encoded.cpu().numpy())
            indices = model.quantize(encoded)[2][2]
            counts += torch.bincount(indices.flatten(), minlength=len(counts))
            before, after = (np.stack([picture(image) for image in images]) for images in (originals, copies))
            parts["VQ-VAE"].append(measure(before, after, floor, lpips))
            for row, change in SCALE.items():
                parts[row].append(measure(before, np.stack([change(image) for image in before]), floor, lpips))
            for i, original, copy, score in zip(places, before, after, parts["VQ-VAE"][-1]["ssim"], strict=True):
                label = int(dataset.labels[i])
                if label not in worst or score < worst[label][0]:
                    difference = (128 + (copy.astype(np.int16) - original) // 2).astype(np.uint8)
                    worst[label] = (score, [original, copy, difference])
            progress.update(len(places))
    values = {row: {m: np.concatenate([p[m] for p in batches]) for m in batches[0]} for row, batches in parts.items()}
    perplexity, used = code_usage(counts.cpu())
    figures = {
        "count": len(dataset),
        "image_shape": dataset.index["image_shape"],
        "floor": floor,
        "lpips_missing": missing,
        "rows": {row: _summary(measures) for row, measures in values.items()},
        "classes": {
            dataset.classes[label]: _summary({m: v[dataset.labels == label] for m, v in values["VQ-VAE"].items()})
            for label in sorted(worst)
        },
        "codes": {"number": len(counts), "used": used, "perplexity": perplexity},
        "latents": {**latents.figures(), "scaled_std": _scaled_std(model, train, latents, config.batch_size)},
    }
    return figures, [worst[label][1] for label in sorted(worst)]


def _summary(values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    from mdaug.measures.image_quality import MEASURES

    return {
        name: {"mean": float(value.mean()), "worst": float(MEASURES[name][1](value.tolist()))}
        for name, value in values.items()
    }


def format_table(figures: dict) -> str:
    """Return the figures as text: means with the worst image in brackets, then what is to be reached."""
    from mdaug.measures.image_quality import MEASURES

    rows = {**figures["rows"], **{f"  {name}": entry for name, entry in figures["classes"].items()}}
    names = [name for name in MEASURES if name in figures["rows"]["VQ-VAE"]]
    width = max(len(row) for row in rows) + 2
    titles = [f"{name} [{MEASURES[name][0]}]" if MEASURES[name][0] else name for name in names]
    lines = [" " * width + "".join(f"{title:>18s}" for title in titles)]
    for row, entry in rows.items():
        cells = [f"{entry[name]['mean']:.3f} ({entry[name]['worst']:.3f})" for name in names]
        lines.append(f"{row:{width}s}" + "".join(f"{cell:>18s}" for cell in cells))
    codes, latents = figures["codes"], figures["latents"]
    lines.append(f"{figures['count']} images of {figures['split']}; mean (worst image)")
    lines.append(
        f"codes: {100 * codes['used']:.1f} % of {codes['number']} used, perplexity {codes['perplexity']:.1f}; latents: "
        f"std {_list(latents['std'])}, excess kurtosis {_list(latents['excess_kurtosis'])}"
    )
    if figures["lpips_missing"]:
        lines.append("LPIPS is not measured: its weights are not on this machine ('make weights NET=vgg' fetches them)")
    if not figures["same_images_as_training"]:
        lines.append("the VQ-VAE was trained on another packing: some of these images may have been among its own")
    return "\n".join([*lines, "", format_targets(figures["targets"], figures["preset"])])


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


PSNR_DB = 28.0
CODES_USED = 0.9
PERPLEXITY_PART = 3  # perplexity at least K over this
SHARPNESS = (0.9, 1.1)
STD = (0.98, 1.02)


def targets(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows {"figure", "measured", "target", "reached"} for the figures of `mdaug reconstruct`.

    "reached" is None where a figure is reported only. Kurtosis and standard deviation are those of the channel that
    is farthest from a normal distribution.
    """
    image, codes = figures["rows"]["VQ-VAE"], figures["codes"]
    psnr, sharpness = (image[name]["mean"] for name in ("psnr", "sharpness"))
    std = max(figures["latents"]["scaled_std"], key=lambda value: abs(math.log(max(value, 1e-12))))
    kurtosis = max(figures["latents"]["excess_kurtosis"], key=abs)
    least = codes["number"] / PERPLEXITY_PART
    rows = [
        ("PSNR [dB]", psnr, f">= {PSNR_DB:g}", psnr >= PSNR_DB),
        ("codes used", codes["used"], f">= {CODES_USED:g}", codes["used"] >= CODES_USED),
        ("perplexity", codes["perplexity"], f">= {least:.1f} (K/3)", codes["perplexity"] >= least),
        ("sharpness", sharpness, "{:g} to {:g}".format(*SHARPNESS), SHARPNESS[0] <= sharpness <= SHARPNESS[1]),
        ("latent std after scaling", std, "{:g} to {:g}".format(*STD), STD[0] <= std <= STD[1]),
        ("latent excess kurtosis", kurtosis, "reported", None),
    ]
    return [dict(zip(("figure", "measured", "target", "reached"), row, strict=True)) for row in rows]


def format_targets(rows: list[dict[str, Any]], preset: str) -> str:
    """Return the rows as text under the preset's name."""
    answers = {True: "yes", False: "no", None: ""}
    lines = [f"{f'to reach ({preset})':<32s}{'measured':>10s}  {'target':<16s}{'reached'}"]
    for row in rows:
        answer = answers[row["reached"]]
        lines.append(f"{row['figure']:<32s}{row['measured']:>10.3f}  {row['target']:<16s}{answer}".rstrip())
    return "\n".join(lines)
