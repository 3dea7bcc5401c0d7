"""Samples per second of ShardDataset against webdataset.WebDataset on the same shards.

Both sides decode with the same functions, in the same number of DataLoader workers, into the same batches. Ours reads
in the exact order of a global permutation per epoch; WebDataset reads the shards one after the other, which is its
fastest way (`--shuffle` gives it its usual shuffle buffer). The two take turns, and the table shows medians.

    python benchmarks/data.py                      # on shards of PNG 64, PNG 256 and npy latents, made for it
    python benchmarks/data.py --data_dir packed    # on a packed folder of images
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from shards import provenance
from shards.dataset import ShardDataset, decode_array, decode_image
from shards.index import read_index, write_index
from shards.order import EpochOrder, PositionDataset, PositionSampler
from shards.samples import FIELDS
from shards.writer import write_shard


def spectrogram(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return something that compresses as a spectrogram does: a smooth signature over a noisy floor, uint8 RGB."""
    time_axis, doppler = np.meshgrid(np.linspace(0, 1, size), np.linspace(-1, 1, size))
    level = np.exp(-(((doppler - 0.5 * np.sin(2 * np.pi * 3 * time_axis + rng.uniform(0, 6))) / 0.1) ** 2))
    level = np.clip(level + 0.05 * rng.exponential(size=level.shape), 0, 1)
    return (255 * np.stack([level, level**2, 1 - level], axis=-1)).astype(np.uint8)


def make_samples(kind: str, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    rng = np.random.default_rng(0)
    for i in range(count):
        file = io.BytesIO()
        if kind.startswith("png"):
            Image.fromarray(spectrogram(rng, int(kind[3:]))).save(file, "PNG", compress_level=1)
        else:
            np.save(file, rng.normal(size=(4, 32, 32)).astype(np.float32))
        yield f"{i:08d}", {kind[:3]: file.getvalue(), "cls": str(i % 5).encode(), "json": b"{}"}


def make_shards(folder: Path, kind: str, count: int, shards: int) -> Path:
    samples = make_samples(kind, count)
    for number in range(shards):
        write_shard(folder / f"{number:06d}.tar", [next(samples) for _ in range(count // shards)])
    write_index(folder, list("abcde"))
    return folder


def our_item(field: str, sample: dict, position: int) -> tuple[np.ndarray, int]:
    return sample[field], sample["label"]


def their_item(field: str, sample: dict) -> tuple[np.ndarray, int]:
    extension = next(name for name in FIELDS[field] if name in sample)
    decode = decode_image if field == "image" else decode_array
    return decode(sample[extension]), int(sample["cls"])


def ours(folder: Path, field: str, batch: int, **loader) -> Iterable:
    dataset = ShardDataset(folder, (field,))
    positions = PositionDataset(dataset, EpochOrder(len(dataset), seed=0), functools.partial(our_item, field))
    sampler = PositionSampler(
        global_batch=batch, micro_batch=batch, rank=0, world_size=1, first_step=0, last_step=len(dataset) // batch
    )
    return DataLoader(positions, batch_sampler=sampler, **loader)


def theirs(folder: Path, field: str, batch: int, shuffle: int, **loader) -> Iterable:
    urls = [str(folder / shard["url"]) for shard in read_index(folder)["shardlist"]]
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls) if shuffle else False)
    if shuffle:
        dataset = dataset.shuffle(shuffle)
    return DataLoader(dataset.map(functools.partial(their_item, field)), batch_size=batch, **loader)


def rate(loader: Iterable) -> float:
    """Return samples per second of one pass."""
    start, count = time.perf_counter(), 0
    for values, _ in loader:
        count += len(values)
    return count / (time.perf_counter() - start)


def compare(folder: Path, kind: str, options: argparse.Namespace) -> dict:
    field = "array" if kind.startswith("npy") else "image"
    loader = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
    contestants = {
        "ours": ours(folder, field, options.batch, **loader),
        "webdataset": theirs(folder, field, options.batch, options.shuffle, **loader),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(options.repetitions + 1):
        for name in sorted(contestants, reverse=turn % 2 == 1):
            speed = rate(contestants[name])
            if turn:  # the first pass starts the workers and warms the page cache
                rates[name].append(speed)
    ratios = [a / b for a, b in zip(rates["ours"], rates["webdataset"], strict=True)]
    return {
        "kind": kind,
        "samples": read_index(folder)["nsamples"],
        **{name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="packed images to read instead of made ones")
    parser.add_argument("--samples", type=int, default=1000, help="samples of each kind that are made")
    parser.add_argument("--workers", type=int, default=1, help="DataLoader workers of each side")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shuffle", type=int, default=0, help="samples in the shuffle buffer of WebDataset")
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        if options.data_dir:
            folders = {"packed": options.data_dir / "train"}
        else:
            shards = 4 * max(1, options.workers)
            kinds = ("png64", "png256", "npy")
            folders = {kind: make_shards(Path(scratch) / kind, kind, options.samples, shards) for kind in kinds}
        print(f"{'kind':8s}{'ours/s':>10s}{'webdataset/s':>14s}{'ratio':>8s}  range")
        for kind, folder in folders.items():
            result = compare(folder, kind, options)
            results.append(result)
            rates = f"{result['ours']:10.0f}{result['webdataset']:14.0f}{result['ratio']:8.2f}"
            print(f"{kind:8s}{rates}  {result['ratio_range'][0]:.2f}-{result['ratio_range'][1]:.2f}", flush=True)
    card = {
        "benchmark": "data",
        "version": provenance.code_version(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "webdataset": webdataset.__version__,
        "options": {name: value for name, value in vars(options).items() if name != "data_dir"},
        "results": results,
    }
    print(json.dumps(card))


if __name__ == "__main__":
    main()
