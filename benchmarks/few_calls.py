"""What limits a distilled model in bulk generation: U-Net, decoder, PNG or disk, on paper for one card.

The networks are counted as in step_cost.py, forward in bf16, on tensors without data. The PNG encoder is timed here, on
one core, with pictures of a packed set (else with made-up ones); its threads share the machine's cores. No GPU is
needed, and none was timed.

    python benchmarks/few_calls.py --data runs/x/packed
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from step_cost import CARDS, count, kernels_of, milliseconds
from torch import nn

from mdaug import cli
from mdaug.generation.shard import to_png
from mdaug.models import norms
from mdaug.models.vqvae import build_vqvae
from shards import provenance
from shards.dataset import ShardDataset

PICTURES = 64  # encoded for the rate


def pictures(data: Path | None, size: int, channels: int) -> list[np.ndarray]:
    """Return pictures of the training split, or noise on a gradient, uint8 (H, W, C)."""
    if data is not None:
        images = ShardDataset(data / "train")
        return [images[i * len(images) // PICTURES]["image"] for i in range(PICTURES)]
    rng = np.random.default_rng(0)
    rows = np.linspace(0, 255, size)[:, None, None] + rng.normal(0, 12, (PICTURES, size, size, channels))
    return list(np.clip(rows, 0, 255).astype(np.uint8))


def encoder(images: list[np.ndarray]) -> tuple[float, float]:
    """Return PNGs per second of processor time of one core, and bytes of a PNG."""
    begun = time.process_time()
    sizes = [len(to_png(image)) for image in images]
    return len(images) / (time.process_time() - begun), float(np.mean(sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default")
    parser.add_argument("--calls", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--wanted", type=float, default=5e6, help="samples an hour")
    parser.add_argument("--cores", type=int, default=16, help="of the machine, for PNG")
    parser.add_argument("--card", default="H200", choices=list(CARDS))
    parser.add_argument("--data", type=Path, help="packed set whose pictures are encoded")
    options = parser.parse_args()

    flags = ["--config", options.config, "--data_dir=d", "--output_dir=o"]
    vq, config = cli.parse("train-vqvae", flags), cli.parse("train-ldm", [*flags, "--vqvae_path=v"])
    size = int(vq.image_size)
    side = size >> vq.n_layers
    latent = [vq.latent_channels, side, side]

    # The networks on the card, per image.
    def on_card(rows: list[tuple[str, int, int]]) -> tuple[float, float]:
        times = [milliseconds(moved, flops, options.card) for _, moved, flops in rows]
        return sum(times) / options.batch_size, sum(flops for *_, flops in rows) / options.batch_size / 1e9

    unet_ms, unet_gflop = on_card(count(config, latent, options.batch_size)[0])
    with torch.device("meta"):
        model = build_vqvae(
            image_channels=3, latent_channels=vq.latent_channels, num_codes=vq.vq_num_embed, n_layers=vq.n_layers,
            base_channels=vq.base_channels,
        )  # fmt: skip
        norms.use_working_precision(model)
        decoder = nn.Sequential(model.post_quant_conv, model.decoder)

    def codes() -> tuple[torch.Tensor]:
        return (torch.empty(options.batch_size, *latent, memory_format=torch.channels_last),)

    decoder_ms, decoder_gflop = on_card(kernels_of(decoder, codes))

    # The rest on the machine.
    images = pictures(options.data, size, 3)
    rate, held = encoder(images)
    wanted = options.wanted / 3600
    gpu = 1e3 / (options.calls * unet_ms + decoder_ms)
    rows = {
        f"U-Net, {options.calls} calls": (1e3 / (options.calls * unet_ms), f"{unet_gflop:.1f} GFLOP a call"),
        "decoder": (1e3 / decoder_ms, f"{decoder_gflop:.1f} GFLOP"),
        "both, one after the other": (gpu, f"{options.card}, {options.batch_size} at once"),
        f"PNG, {options.cores} cores": (options.cores * rate, f"{rate:.0f} a core, measured here"),
    }
    print(f"wanted: {wanted:.0f} img/s, {options.wanted:g} an hour; {size} x {size}, {options.config}")
    for name, (img_s, said) in rows.items():
        print(f"{name:28s}{img_s:9.0f} img/s  {img_s / wanted:5.2f} x  {said}")
    print(f"{'tar':28s}{wanted * held / 1e6:9.1f} MB/s to disk, {held / 1e3:.1f} kB a PNG")
    record = {
        "benchmark": "few_calls",
        "version": provenance.code_version(),
        "card": options.card,
        "calls": options.calls,
    }
    rates = {name: round(img_s, 1) for name, (img_s, _) in rows.items()}
    print(json.dumps({**record, "config": options.config, "wanted": wanted, "img_s": rates, "png_bytes": round(held)}))


if __name__ == "__main__":
    main()
