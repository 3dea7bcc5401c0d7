"""Latents whose distribution is known exactly: four Gaussian classes, behind a VQ-VAE that was never trained."""

from __future__ import annotations

import io
import json
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


def toy_task(root: Path, **changes) -> LDMTask:
    """Return the task of training a tiny model on such latents."""
    folders = toy_latents(root, train=8, val=4)
    options = {"block_out_channels": (16, 32), "num_heads": 2, "norm_num_groups": 8, "window_size": 4, **changes}
    vqvae, packed = folders["vqvae"], folders["packed"]
    config = LDMConfig(data_dir=packed, output_dir=root / "run", vqvae_path=vqvae, image_size=16, **options)
    return LDMTask(config, packed, vqvae, folders["latents"], {"images": "", "vqvae": ""})
