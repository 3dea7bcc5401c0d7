"""`mdaug encode`: packed images -> latent shards, once, on all devices, with measured mean and std."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdaug import config as configuration
from mdaug import distributed
from mdaug.artifacts import find_vqvae, load_geometry, open_images, packing_options_of
from mdaug.models.latent_statistics import LatentStatistics
from mdaug.training.options import EncodeConfig
from shards import atomic, provenance
from shards.errors import UserError
from shards.validation import Preflight

if TYPE_CHECKING:
    from diffusers import VQModel

    from mdaug.training.augmented_images import Views

STATISTICS_FILE, PLAN_FILE = "statistics.json", "plan.json"


def check(options: EncodeConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds other latents, or inputs that are there do not fit."""
    if where.device is not None:
        distributed.require_gpu_for_fp16(options.mixed_precision, where.device)
    made_from = _made_from(options) if where.inputs_there else {}
    refuse_other_latents(options.output_dir, made_from, options.augmentation)


def _made_from(options: EncodeConfig) -> dict[str, str]:
    """Return role -> content hash of the inputs, without images that are packed at the start; raises UserError."""
    from shards.packed import packed_hash

    vqvae = find_vqvae(options.vqvae_path)
    size, packing = packing_options_of(vqvae)
    images = packed_hash(options.data_dir, size, **packing)
    made_from = {} if images is None else {"images": images}
    return {**made_from, "vqvae": provenance.read(vqvae, "vqvae")["hash"]}


def run(config: EncodeConfig) -> None:
    """Encode train and val; see `encode_packed`."""
    distributed.init()

    vqvae = find_vqvae(config.vqvae_path)
    encode_packed(open_images(config.data_dir, vqvae), vqvae, config.output_dir, config)


def encode_packed(packed: Path, vqvae_folder: Path, output: Path, config: EncodeConfig) -> None:
    """Write the latents of a packed folder; every rank calls it.

    A rank encodes every world_size-th shard; finished shards are kept. The statistics are added up in
    the order of the shards, so they are the same for any number of ranks.

    Raises:
        UserError: `output` holds the latents of other images or of another VQ-VAE, or the sizes differ.
    """
    from mdaug.models.vqvae import load_vqvae
    from mdaug.training.augmented_images import Views
    from mdaug.training.engine import resolve_precision
    from shards.dataset import ShardDataset
    from shards.index import read_index, write_index
    from shards.progress import Progress
    from shards.writer import finished, write_shard

    made_from = {
        "images": provenance.read(packed, "images")["hash"],
        "vqvae": provenance.read(vqvae_folder, "vqvae")["hash"],
    }
    shards = sum(len(read_index(packed / split)["shardlist"]) for split in ("train", "val"))
    if is_finished(output, made_from, config.augmentation, shards):
        if distributed.is_main():
            print(f"{output} is finished: it holds the latents of {packed}")
        return
    geometry = load_geometry(vqvae_folder)
    device = distributed.device()
    precision = resolve_precision(config.mixed_precision, device)
    model = load_vqvae(vqvae_folder).to(device).requires_grad_(False)
    started = time.perf_counter()
    for split in ("train", "val"):
        images = ShardDataset(packed / split, fields=("image",))
        if list(images.index["image_shape"]) != geometry["image_shape"]:
            raise UserError(
                f"{packed} holds images of shape {images.index['image_shape']}, the VQ-VAE {vqvae_folder} was trained "
                f"on {geometry['image_shape']}; pack the images with that size"
            )
        copies = config.augment_copies if split == "train" else 0
        views = Views(images, config, copies, geometry.get("floor"))
        mine = [shard for i, shard in enumerate(images.shards) if i % distributed.world_size() == distributed.rank()]
        count = (1 + copies) * sum(size for _, _, size in mine)
        with Progress(f"encoding {split}", count, "image") as progress:
            for name, first, size in mine:
                target = output / split / name
                if finished(target) is None:
                    statistics = LatentStatistics()
                    part = range(first * (1 + copies), (first + size) * (1 + copies))
                    latents = _latents(views, part, model, precision, geometry, config)
                    write_shard(target, _samples(views, part, latents, statistics), statistics.as_dict)
                progress.update(size * (1 + copies))
        distributed.wait_for_work()
        if distributed.is_main():
            extra = {"copies": copies} if copies else {}
            write_index(output / split, images.classes, latent_shape=geometry["latent_shape"], **extra)
            atomic.write_text(output / "classes.json", json.dumps(images.classes, ensure_ascii=False) + "\n")
    if distributed.is_main():
        _finish(output, geometry["latent_shape"], made_from, config)
        statistics_text = (output / STATISTICS_FILE).read_text(encoding="utf-8").strip()
        print(f"encoded in {time.perf_counter() - started:.1f} s: {statistics_text}")
    distributed.barrier()


def augmentation_of(folder: Path) -> dict[str, Any]:
    """Return the options of the augmented copies of a folder of latents, finished or not; none where it has none."""
    plan = folder / PLAN_FILE
    return json.loads(plan.read_text(encoding="utf-8")).get("augmentation", {}) if plan.is_file() else {}


def is_finished(folder: Path, made_from: dict[str, str], augmentation: dict[str, Any], shards: int) -> bool:
    """Claim `folder` for latents made from these hashes, so augmented, and return whether they are all there.

    `plan.json` remembers the claim from the first moment, so that an interrupted run is not continued
    with another VQ-VAE; how many shards there will be is there for whoever asks how far it is.
    Raises UserError where the folder belongs to other images, another VQ-VAE or other copies.
    """
    plan = folder / PLAN_FILE
    refuse_other_latents(folder, made_from, augmentation)
    distributed.barrier()
    if distributed.is_main() and not plan.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        claim = {**made_from, "shards": shards, **({"augmentation": augmentation} if augmentation else {})}
        atomic.write_text(plan, json.dumps(claim) + "\n")
    distributed.barrier()
    return (folder / provenance.FILE_NAME).is_file()


def refuse_other_latents(folder: Path, made_from: dict[str, str], augmentation: dict[str, Any] | None = None) -> None:
    """Raise UserError where a folder holds other images' latents, another VQ-VAE's, (unless None) other copies, or
    anything else.
    """
    plan = folder / PLAN_FILE
    there = json.loads(plan.read_text(encoding="utf-8")) if plan.is_file() else {}
    if "vqvae" not in there:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else ["a file"] if folder.exists() else []
        if any(name != "logs" and name[0] != "." for name in names):
            raise UserError(f"{folder} holds something else than latents; choose another folder for them")
        return
    for role, wanted in made_from.items():
        if there[role] != wanted:
            raise UserError(
                f"{folder} holds latents made from another {role} ({there[role][:12]}, here {wanted[:12]}); "
                "choose another folder for the latents or delete that one"
            )
    if augmentation is not None and augmentation != augmentation_of(folder):
        raise UserError(
            f"{folder} holds latents with {augmentation_of(folder) or 'no augmented copies'}, asked for is "
            f"{augmentation or 'none'}; choose another folder for the latents or delete that one"
        )


def load_statistics(folder: Path) -> dict:
    """Return {"mean": [C], "std": [C], "excess_kurtosis": [C], "count": latent pixels, "shape": [C, h, w]} of the
    training latents, and "held_out_scaled": {"mean": [C], "std": [C]} of the others in that scale.
    """
    return json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8"))


def _latents(
    views: Views, indices: range, model: VQModel, precision: str, geometry: dict, config: EncodeConfig
) -> Iterator[np.ndarray]:
    """Yield the latent (C, h, w), float32, of every view in order."""
    import torch
    from torch.utils.data import DataLoader, Subset

    device = next(model.parameters()).device

    loader = DataLoader(
        Subset(views, indices),
        config.batch_size,
        collate_fn=torch.stack,
        num_workers=config.num_workers,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        with torch.no_grad(), distributed.autocast(precision, device):
            latents = model.encode(batch.to(device, non_blocking=True)).latents.float().cpu().numpy()
        if list(latents.shape[1:]) != geometry["latent_shape"]:
            raise UserError(f"the VQ-VAE gives latents {latents.shape[1:]}, its folder says {geometry['latent_shape']}")
        yield from latents


def _samples(
    views: Views, part: range, latents: Iterator[np.ndarray], statistics: LatentStatistics
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the members of every view; the scale is that of the images themselves, which is what will be sampled."""
    for j, latent in zip(part, latents, strict=True):
        image, copy = divmod(j, 1 + views.copies)
        if copy == 0:
            statistics.add(latent)
        file = io.BytesIO()
        np.save(file, latent, allow_pickle=False)
        members = {"npy": file.getvalue(), "cls": str(views.images.labels[image]).encode()}
        if views.copies:
            meta = {"image": views.images.keys[image], "copy": copy, "augment": views.row(j).tolist()}
            members["json"] = json.dumps(meta).encode()
        yield views.key(j), members


def _finish(output: Path, shape: list[int], made_from: dict[str, str], config: EncodeConfig) -> None:
    """Write the statistics of the latents and the files that end the step."""
    from shards.index import content_hash

    train, val = (_statistics(output / split) for split in ("train", "val"))
    figures = train.figures()
    mean, std = np.array(figures["mean"]), np.array(figures["std"])
    if not (np.isfinite(std).all() and (std > 0).all()):
        raise UserError(f"the latents' standard deviation is {std.tolist()}: a channel is constant; retrain the VQ-VAE")
    statistics = {**figures, "count": train.count, "shape": shape}
    if val.count:
        held_out = val.figures()
        statistics["held_out_scaled"] = {
            "mean": ((np.array(held_out["mean"]) - mean) / std).tolist(),
            "std": (np.array(held_out["std"]) / std).tolist(),
        }
    atomic.write_text(output / STATISTICS_FILE, json.dumps(statistics) + "\n")
    provenance.write(
        output,
        kind="latents",
        content_hash=content_hash(output),
        made_from=made_from,
        config=configuration.as_dict(config),
    )


def _statistics(folder: Path) -> LatentStatistics:
    """Merge the sums of the shards of a split, in their order."""
    from shards.index import read_index
    from shards.writer import finished

    merged = LatentStatistics()
    for entry in read_index(folder)["shardlist"]:
        record = finished(folder / entry["url"])
        assert record is not None
        merged.merge(record["statistics"])
    return merged
