"""`mdaug encode`: packed images -> latent shards, once, on all devices, with measured mean and std."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mdaug import config as configuration
from mdaug.models.latent_statistics import LatentStatistics
from mdaug.training import distributed
from shards import provenance
from shards.errors import UserError

if TYPE_CHECKING:
    import torch
    from diffusers import VQModel

    from shards.dataset import ShardDataset

STATISTICS_FILE, PLAN_FILE = "statistics.json", "plan.json"


@dataclass
class EncodeConfig:
    """Encode packed images to latent shards: the latents before quantization, decoding quantizes."""

    data_dir: Path
    """Packed shards, or an image folder (packed into a cache)."""
    vqvae_path: Path
    """VQ-VAE: the run folder of train-vqvae (its best/) or a diffusers folder."""
    output_dir: Path
    """Folder of the latent shards. The same command again continues or says that it is finished."""
    batch_size: int = 64
    """Images that one device encodes at once."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "no"
    """Precision of the encoder; the statistics are always fp64."""
    num_workers: int = 2
    """Image decoding processes per rank."""


def encode(config: EncodeConfig) -> None:
    """Encode train and val; see `encode_packed`."""
    distributed.init()
    from mdaug.models.vqvae import find_vqvae, load_geometry
    from shards.cache import open_packed
    from shards.size import written

    vqvae = find_vqvae(config.vqvae_path)
    size = written(*load_geometry(vqvae)["image_shape"][:2])
    encode_packed(open_packed(config.data_dir, size), vqvae, config.output_dir, config)


def encode_packed(packed: Path, vqvae_folder: Path, output: Path, config: EncodeConfig) -> None:
    """Write the latents of a packed folder; every rank calls it.

    A rank encodes every world_size-th shard; finished shards are kept. The statistics are added up in
    the order of the shards, so they are the same for any number of ranks.

    Raises:
        UserError: `output` holds the latents of other images or of another VQ-VAE, or the sizes differ.
    """
    from mdaug.models.vqvae import load_geometry, load_vqvae
    from mdaug.training.engine import resolve_precision
    from shards.dataset import ShardDataset
    from shards.index import write_index
    from shards.progress import Progress
    from shards.writer import finished, write_shard

    made_from = {
        "images": provenance.read(packed, "images")["hash"],
        "vqvae": provenance.read(vqvae_folder, "vqvae")["hash"],
    }
    if is_finished(output, made_from):
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
        mine = [shard for i, shard in enumerate(images.shards) if i % distributed.world_size() == distributed.rank()]
        count = sum(size for _, _, size in mine)
        with Progress(f"encoding {split}", count, "image") as progress:
            for name, first, size in mine:
                target = output / split / name
                if finished(target) is None:
                    statistics = LatentStatistics()
                    latents = _latents(images, range(first, first + size), model, precision, geometry, config)
                    write_shard(target, _samples(images, first, latents, statistics), statistics.as_dict)
                progress.update(size)
        distributed.barrier()
        if distributed.is_main():
            write_index(output / split, images.classes, latent_shape=geometry["latent_shape"])
            provenance.write_text(output / "classes.json", json.dumps(images.classes, ensure_ascii=False) + "\n")
    if distributed.is_main():
        _finish(output, geometry["latent_shape"], made_from, config)
        statistics_text = (output / STATISTICS_FILE).read_text(encoding="utf-8").strip()
        print(f"encoded in {time.perf_counter() - started:.1f} s: {statistics_text}")
    distributed.barrier()


def is_finished(folder: Path, made_from: dict[str, str]) -> bool:
    """Claim `folder` for latents made from these hashes and return whether they are all there.

    `plan.json` remembers the claim from the first moment, so that an interrupted run is not continued
    with another VQ-VAE. Raises UserError where the folder belongs to other images or another VQ-VAE.
    """
    plan = folder / PLAN_FILE
    if plan.is_file():
        there = json.loads(plan.read_text(encoding="utf-8"))
        for role, wanted in made_from.items():
            if there[role] != wanted:
                raise UserError(
                    f"{folder} holds latents made from another {role} ({there[role][:12]}, here {wanted[:12]}); "
                    "choose another folder for the latents or delete that one"
                )
    distributed.barrier()
    if distributed.is_main() and not plan.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        provenance.write_text(plan, json.dumps(made_from) + "\n")
    distributed.barrier()
    return (folder / provenance.FILE_NAME).is_file()


def load_statistics(folder: Path) -> dict:
    """Return {"mean": [C], "std": [C], "excess_kurtosis": [C], "count": latent pixels, "shape": [C, h, w]} of the
    training latents, and "held_out_scaled": {"mean": [C], "std": [C]} of the others in that scale.
    """
    return json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8"))


def _latents(
    images: ShardDataset, indices: range, model: VQModel, precision: str, geometry: dict, config: EncodeConfig
) -> Iterator[np.ndarray]:
    """Yield the latent (C, h, w), float32, of every index in order."""
    import torch
    from torch.utils.data import DataLoader, Subset

    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    device = next(model.parameters()).device

    loader = DataLoader(
        Subset(images, indices),
        config.batch_size,
        collate_fn=_stack_images,
        num_workers=config.num_workers,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            latents = model.encode(batch.to(device, non_blocking=True)).latents.float().cpu().numpy()
        if list(latents.shape[1:]) != geometry["latent_shape"]:
            raise UserError(f"the VQ-VAE gives latents {latents.shape[1:]}, its folder says {geometry['latent_shape']}")
        yield from latents


def _stack_images(samples: list[dict]) -> torch.Tensor:
    import torch

    from mdaug.images import to_tensor

    return torch.stack([to_tensor(sample["image"]) for sample in samples])


def _samples(
    images: ShardDataset, first: int, latents: Iterator[np.ndarray], statistics: LatentStatistics
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for index, latent in enumerate(latents, start=first):
        statistics.add(latent)
        file = io.BytesIO()
        np.save(file, latent, allow_pickle=False)
        yield images.keys[index], {"npy": file.getvalue(), "cls": str(images.labels[index]).encode()}


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
    provenance.write_text(output / STATISTICS_FILE, json.dumps(statistics) + "\n")
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
