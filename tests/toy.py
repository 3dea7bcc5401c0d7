"""Small packed sets and pictures that tests build in a moment."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards import atomic, provenance
from shards.index import content_hash, write_index
from shards.writer import write_shard

CLASSES = ["flat", "rising", "falling", "wavy"]


def toy_image(label: int, rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a bright ridge on a dark floor, uint8 (size, size, 1); its course over time tells the class."""
    time = np.linspace(0, 1, size)
    course = [0 * time, time - 0.5, 0.5 - time, 0.4 * np.sin(2 * np.pi * (2 * time + rng.random()))][label]
    ridge = (0.5 + 0.6 * course + 0.1 * rng.standard_normal()) * size
    distance = np.abs(np.arange(size)[:, None] - ridge[None])
    level = np.exp(-0.5 * (distance / (0.05 * size)) ** 2) * (0.8 + 0.2 * rng.random())
    return np.clip(255 * level + 3 * rng.standard_normal((size, size)), 0, 255).astype(np.uint8)[:, :, None]


def toy_packed(folder: Path, *, size: int = 16, train: int = 64, val: int = 16, per_shard: int = 24) -> Path:
    """Write a packed set of `train` + `val` toy images of four classes and return its folder."""
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        rng = np.random.default_rng(seed)
        samples = []
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(toy_image(i % 4, rng, size)[:, :, 0]).save(file, "PNG")
            meta = json.dumps({"class": CLASSES[i % 4], "group": f"{split}{i // 4}"}).encode()
            samples.append((f"{split}_{i:05d}", {"png": file.getvalue(), "cls": str(i % 4).encode(), "json": meta}))
        for shard, start in enumerate(range(0, count, per_shard)):
            write_shard(folder / split / f"{shard:06d}.tar", samples[start : start + per_shard])
        write_index(folder / split, CLASSES, image_shape=[size, size, 1])
    atomic.write_text(folder / "classes.json", json.dumps(CLASSES))
    provenance.write(folder, kind="images", content_hash=content_hash(folder), made_from={}, config={})
    return folder


def toy_folder(folder: Path, names: Sequence[str] = ("zig", "zag"), size: int = 32, channels: int = 1) -> Path:
    """Write an image folder of eight images of each class, other ones than those of `toy_packed`."""
    rng = np.random.default_rng(5)
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            picture = np.repeat(toy_image(label, rng, size), channels, axis=2)
            picture[..., 0] ^= 1 if channels == 3 else 0
            Image.fromarray(picture.squeeze()).save(folder / name / f"{i:02d}.png")
    return folder


def toy_synthetic(
    folder: Path, packed: Path, *, per_class: int = 16, shift: int = 0, classes: Sequence[str] = CLASSES, size: int = 32
) -> Path:
    """Write fresh draws of the toy distribution as a synthetic set; `shift` turns all labels into wrong ones."""
    rng = np.random.default_rng(7)
    samples = []
    for i in range(per_class * len(CLASSES)):
        file = io.BytesIO()
        Image.fromarray(toy_image(i % 4, rng, size)[:, :, 0]).save(file, "PNG")
        label = (i + shift) % 4
        meta = json.dumps({"class": CLASSES[label], "seed": i}).encode()
        samples.append((f"s_{i:05d}", {"png": file.getvalue(), "cls": str(label).encode(), "json": meta}))
    write_shard(folder / "000000.tar", samples)
    write_index(folder, list(classes))
    made_from = {"images": provenance.read(packed, "images")["hash"], "pipeline": "p"}
    provenance.write(folder, kind="synthetic", content_hash=content_hash(folder), made_from=made_from, config={})
    return folder


def unequal_packed(
    folder: Path, counts: dict[str, tuple[int, int]], *, size: int = 32, meta: dict | None = None, seed: int = 0
) -> Path:
    """Write a packed set with (train, val) images of each class, each a group of its own, with further metadata."""
    for place, split in enumerate(("train", "val")):
        labels = [label for label, both in enumerate(counts.values()) for _ in range(both[place])]
        _write(folder / split, list(counts), labels, size, meta or {}, seed=seed + place)
        write_index(folder / split, list(counts), image_shape=[size, size, 1])
    atomic.write_text(folder / "classes.json", json.dumps(list(counts)))
    provenance.write(folder, kind="images", content_hash=content_hash(folder), made_from={}, config={})
    return folder


def packed_metadata(folder: Path, train: list[dict], val: list[dict]) -> Path:
    """Write a packed set without pictures: metadata is all that is read here."""
    for split, rows in (("train", train), ("val", val)):
        samples = [
            (f"{split}{i}", {"cls": str(i % 2).encode(), "json": json.dumps(row).encode()})
            for i, row in enumerate(rows)
        ]
        write_shard(folder / split / "000000.tar", samples)
        write_index(folder / split, ["walk", "fall"])
    provenance.write(folder, kind="images", content_hash=content_hash(folder), made_from={}, config={})
    return folder


def unequal_synthetic(folder: Path, packed: Path, counts: dict[str, int], *, size: int = 32) -> Path:
    """Write a synthetic set with so many images of each class."""
    labels = [label for label, count in enumerate(counts.values()) for _ in range(count)]
    _write(folder, list(counts), labels, size, {}, seed=7)
    write_index(folder, list(counts))
    made_from = {"images": provenance.read(packed, "images")["hash"], "pipeline": "p"}
    provenance.write(folder, kind="synthetic", content_hash=content_hash(folder), made_from=made_from, config={})
    return folder


def _write(folder: Path, classes: list[str], labels: list[int], size: int, meta: dict, seed: int) -> None:
    rng, samples = np.random.default_rng(seed), []
    for i, label in enumerate(labels):
        file = io.BytesIO()
        Image.fromarray(toy_image(label % 4, rng, size)[:, :, 0]).save(file, "PNG")
        record = json.dumps({"class": classes[label], "group": f"{folder.name}{i}", **meta}).encode()
        samples.append((f"s_{i:05d}", {"png": file.getvalue(), "cls": str(label).encode(), "json": record}))
    folder.mkdir(parents=True, exist_ok=True)
    if samples:
        write_shard(folder / "000000.tar", samples)
