"""`mdaug encode`: packed images -> latent shards, once, on all devices, with measured mean and std."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from torch.utils.data import DataLoader

from mdaug import config as configuration
from mdaug import distributed
from mdaug.artifacts import find_vqvae, load_geometry, open_images, packing_options_of
from mdaug.images import in_range
from mdaug.models.latent_statistics import LatentStatistics
from mdaug.models.vqvae import load_vqvae
from mdaug.training.augmented_images import Views
from mdaug.training.engine import resolve_precision
from mdaug.training.options_vqvae import EncodeConfig
from mdaug.training.run_folder import claim_on_all_ranks
from shards import atomic, provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import content_hash, read_index, write_index
from shards.output_folder import OutputFolder, read_run, refuse_other
from shards.packed import packed_hash
from shards.progress import Progress
from shards.validation import Preflight
from shards.writer import finished, write_shard

STATISTICS_FILE = "statistics.json"


def check(options: EncodeConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds other latents, or inputs that are there do not fit."""
    if where.device is not None:
        distributed.require_gpu_for_fp16(options.mixed_precision, where.device)
    made_from: dict[str, str] = {}
    if where.inputs_there:
        vqvae = find_vqvae(options.vqvae_path)
        size, packing = packing_options_of(vqvae)
        images = packed_hash(options.data_dir, size, **packing)
        made_from = {} if images is None else {"images": images}  # None: they are packed at the start
        made_from["vqvae"] = provenance.read(vqvae, "vqvae")["hash"]
    refuse_other(options.output_dir, "encode", options.identity, made_from)


def run(options: EncodeConfig) -> None:
    """Encode train and val; see `encode`."""
    distributed.init()
    encode(options)


def encode(options: EncodeConfig) -> None:
    """Write the latents of packed images; every rank calls it.

    A rank encodes every world_size-th shard; finished shards are kept. The statistics are added up in
    the order of the shards, so they are the same for any number of ranks.

    Raises:
        UserError: the output folder holds the latents of other images or of another VQ-VAE, or the sizes differ.
    """
    vqvae = find_vqvae(options.vqvae_path)
    packed = open_images(options.data_dir, vqvae)
    made_from = {
        "images": provenance.read(packed, "images")["hash"],
        "vqvae": provenance.read(vqvae, "vqvae")["hash"],
    }
    geometry = load_geometry(vqvae)
    if (shape := read_index(packed / "train")["image_shape"]) != geometry["image_shape"]:
        raise UserError(
            f"{packed} holds images of shape {shape}, the VQ-VAE {vqvae} was trained on {geometry['image_shape']}; "
            "pack the images with that size"
        )
    device = distributed.device()
    precision = resolve_precision(options.mixed_precision, device)
    folder = claim_on_all_ranks(options.output_dir, "encode", options.identity, made_from, wait=True)
    output = folder.path
    if folder.finished:
        if distributed.is_main():
            print(f"{output} is finished: it holds the latents of {packed}")
        return
    if distributed.is_main():
        folder.begin_again()
    distributed.barrier()
    model = load_vqvae(vqvae).to(device).requires_grad_(False)
    started = time.perf_counter()

    # The images and their augmented copies, and how many of them all ranks encode.
    splits = {}
    for split in (name for name in ("train", "val") if (packed / name / INDEX).is_file()):
        images = ShardDataset(packed / split, fields=("image",))
        copies = options.augment_copies if split == "train" else 0
        splits[split] = Views(images, copies, options.augment_with, options.augment_seed, geometry.get("floor"))
    total, done = sum(len(views) for views in splits.values()), 0

    # Every rank encodes its shards of a split; then rank 0 writes the index.
    for split, views in splits.items():
        own = views.images.shards[distributed.rank() :: distributed.world_size()]
        parts = {
            name: range(first * (1 + views.copies), (first + size) * (1 + views.copies)) for name, first, size in own
        }
        own_views = sum(map(len, parts.values()))
        missing = [part for name, part in parts.items() if finished(output / split / name) is None]
        latents = _latents(views, missing, model, precision, geometry, options)
        with Progress(f"encoding {split}", own_views, "image") as progress:
            for name, part in parts.items():
                if part in missing:
                    statistics = LatentStatistics()
                    members = _samples(views, part, islice(latents, len(part)), statistics)
                    write_shard(output / split / name, members, statistics.as_dict)
                progress.update(len(part))
                if distributed.is_main():  # the others are about as far
                    folder.progress(done + progress.count * len(views) // own_views, total, "image")
        done += len(views)
        distributed.wait_for_work()
        if distributed.is_main():
            extra = {"copies": views.copies} if views.copies else {}
            write_index(output / split, views.images.classes, latent_shape=geometry["latent_shape"], **extra)
            atomic.write_text(output / "classes.json", json.dumps(views.images.classes, ensure_ascii=False) + "\n")

    # The scale of the latents, and the mark of the end.
    if distributed.is_main():
        _finish(folder, geometry["latent_shape"], options)
        statistics_text = (output / STATISTICS_FILE).read_text(encoding="utf-8").strip()
        print(f"encoded in {time.perf_counter() - started:.1f} s: {statistics_text}")
    distributed.barrier()


def augmentation_of(folder: Path) -> dict[str, Any]:
    """Return the options of the augmented copies in a folder of latents, finished or not; none for a new folder."""
    run = read_run(folder)
    return run["identity"] if run is not None and run["command"] == "encode" else {"augment_copies": 0}


def load_statistics(folder: Path) -> dict:
    """Return {"mean": [C], "std": [C], "excess_kurtosis": [C], "count": latent pixels, "shape": [C, h, w]} of the
    training latents, and "held_out_scaled": {"mean": [C], "std": [C]} of the others in that scale.
    """
    return json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8"))


def _latents(
    views: Views, parts: list[range], model: VQModel, precision: str, geometry: dict, options: EncodeConfig
) -> Iterator[np.ndarray]:
    """Yield the latent (C, h, w), float32, of every view of some shards in order.

    One loader serves all shards, whose ends cut the batches: so a latent does not depend on which shards are missing.
    """
    device = next(model.parameters()).device
    size = options.batch_size
    loader = DataLoader(
        views,
        batch_sampler=[list(part[start : start + size]) for part in parts for start in range(0, len(part), size)],
        collate_fn=torch.stack,
        num_workers=options.num_workers,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        images = batch.to(device, non_blocking=True)
        images = images if views.copies else in_range(images)
        with torch.no_grad(), distributed.autocast(precision, device):
            latents = model.encode(images).latents.float().cpu().numpy()
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
            meta = {"image": views.images.key(image), "copy": copy, "augment": views.row(j).tolist()}
            members["json"] = json.dumps(meta).encode()
        yield views.key(j), members


def _finish(folder: OutputFolder, shape: list[int], options: EncodeConfig) -> None:
    """Write the statistics of the latents and mark the folder as finished."""
    output = folder.path
    train, val = (_statistics(output / split) for split in ("train", "val"))  # an auxiliary set may have no val
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
    folder.finish("latents", content_hash(output), configuration.as_dict(options))


def _statistics(folder: Path) -> LatentStatistics:
    """Merge the sums of the shards of a split, in their order."""
    merged = LatentStatistics()
    for entry in read_index(folder)["shardlist"] if (folder / INDEX).is_file() else ():
        record = finished(folder / entry["url"])
        assert record is not None
        merged.merge(record["statistics"])
    return merged
