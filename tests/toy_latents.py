"""Latents whose distribution is known exactly: four Gaussian classes, behind a VQ-VAE that was never trained."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mdaug.models.vqvae import build_vqvae, save_vqvae
from mdaug.training.ldm_task import LDMTask
from mdaug.training.options_ldm import LDMConfig
from shards import atomic, provenance
from shards.index import content_hash, write_index
from shards.output_folder import claim
from shards.writer import write_shard
from tests.toy import CLASSES, toy_packed

SHAPE = (2, 4, 4)
OFFSET, SCALE = np.array([3.0, -1.0]), np.array([2.0, 0.5])  # of the channels, so that a wrong normalisation shows
SMALL = {"block_out_channels": (16, 32), "num_heads": 2, "norm_num_groups": 8, "window_size": 4}
AMPLITUDE, NOISE = 0.4, 0.3  # deviations


def draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return latents (n, 2, 4, 4) = OFFSET + SCALE (pattern of the class x amplitude N(1, 0.4^2) + N(0, 0.3^2))."""
    rows, columns = np.mgrid[:4, :4] * np.pi / 2 + 0.5
    patterns = np.stack([np.sin(rows), np.sin(columns), np.sin(rows + columns), np.sin(rows) * np.cos(columns)])
    patterns = np.stack([patterns, patterns[:, ::-1, ::-1].transpose(0, 2, 1)], axis=1)
    amplitude = 1 + AMPLITUDE * rng.standard_normal((len(labels), 1, 1, 1))
    plain = amplitude * patterns[labels] + NOISE * rng.standard_normal((len(labels), *SHAPE))
    return OFFSET[:, None, None] + SCALE[:, None, None] * plain


def toy_latents(root: Path, *, train: int = 1024, val: int = 64) -> dict[str, Path]:
    """Write {"packed", "vqvae", "latents"}: folders that belong together by their hashes, but for the pixels."""
    packed, vqvae, latents = (root / name for name in ("packed", "vqvae", "latents"))
    toy_packed(packed, train=4, val=4)
    images = provenance.read(packed, "images")["hash"]
    torch.manual_seed(0)
    model = build_vqvae(image_channels=1, latent_channels=2, num_codes=16, n_layers=2, base_channels=8).eval()
    save_vqvae(model, vqvae, image_shape=[16, 16, 1], made_from={"images": images}, config={})
    made_from = {"images": images, "vqvae": provenance.read(vqvae, "vqvae")["hash"]}
    claimed = claim(latents, "encode", {"augment_copies": 0}, made_from)
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        labels = np.arange(count) % 4
        drawn = draw(labels, np.random.default_rng(seed)).astype(np.float32)
        samples = []
        for i, latent in enumerate(drawn):
            file = io.BytesIO()
            np.save(file, latent, allow_pickle=False)
            samples.append((f"{split}_{i:05d}", {"npy": file.getvalue(), "cls": str(labels[i]).encode()}))
        write_shard(latents / split / "000000.tar", samples)
        write_index(latents / split, CLASSES, latent_shape=list(SHAPE))
        if split == "train":
            mean, std = drawn.mean((0, 2, 3), dtype=float), drawn.std((0, 2, 3), dtype=float)
            statistics = {"mean": mean.tolist(), "std": std.tolist(), "count": drawn.size // 2, "shape": list(SHAPE)}
            atomic.write_text(latents / "statistics.json", json.dumps(statistics))
    atomic.write_text(latents / "classes.json", json.dumps(CLASSES))
    claimed.finish("latents", content_hash(latents), {})
    return {"packed": packed, "vqvae": vqvae, "latents": latents}


def auxiliary_latents(folder: Path, vqvae: Path, classes: list[str], labels: list[int], seed: int = 5) -> Path:
    """Write latents of an auxiliary set, noise."""
    rng, samples = np.random.default_rng(seed), []
    for i, label in enumerate(labels):
        file = io.BytesIO()
        np.save(file, rng.standard_normal(SHAPE).astype(np.float32))
        samples.append((f"x_{i:04d}", {"npy": file.getvalue(), "cls": str(label).encode()}))
    write_shard(folder / "train" / "000000.tar", samples)
    for split in ("train", "val"):
        (folder / split).mkdir(exist_ok=True)
        write_index(folder / split, classes, latent_shape=list(SHAPE))
    made_from = {"images": "1" * 64, "vqvae": provenance.read(vqvae, "vqvae")["hash"]}
    provenance.write(folder, kind="latents", content_hash=content_hash(folder), made_from=made_from, config={})
    return folder


def toy_config(folders: dict[str, Path], aux: Path | list[Path] | None = None, **options) -> LDMConfig:
    """Return the options of training a tiny model on toy latents, and on auxiliary images."""
    return LDMConfig(
        data_dir=folders["packed"], output_dir=folders["packed"].parent / "run", vqvae_path=folders["vqvae"],
        image_size=16, aux_dir=aux, latent_channels=2, **{**SMALL, "layers_per_block": 1, **options},
    )  # fmt: skip


def task_of(folders: dict[str, Path], others: Sequence[Path] = (), **options) -> LDMTask:
    """Return the task of such a training; `others` are auxiliary latents."""
    made_from = {"images": "", "vqvae": provenance.read(folders["vqvae"], "vqvae")["hash"]}
    chosen = toy_config(folders, list(others), **options)
    pairs = [(folder, folder) for folder in others]
    return LDMTask(chosen, folders["packed"], folders["vqvae"], folders["latents"], made_from, pairs)


def toy_task(root: Path, **changes) -> LDMTask:
    """Return the task of training a tiny model on such latents."""
    folders = toy_latents(root, train=8, val=4)
    options = {**SMALL, **changes}
    vqvae, packed = folders["vqvae"], folders["packed"]
    config = LDMConfig(data_dir=packed, output_dir=root / "run", vqvae_path=vqvae, image_size=16, **options)
    return LDMTask(config, packed, vqvae, folders["latents"], {"images": "", "vqvae": ""})
