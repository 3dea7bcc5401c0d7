"""FLOPs and memory of the diffusion U-Net by kind of attention and size of the latents, counted without computing.

Tensors are on the meta device: shapes alone. FLOPs are those of one forward pass of one sample, counted by torch's
FlopCounterMode (matrix products and convolutions; a multiplication with its addition counts two); training takes three
times as many. Memory is what autograd keeps of each sample for the backward pass, all in bfloat16: what a second sample
adds to a first. A training holds more, since normalisations keep fp32 under autocast and kernels need room to work in.
Attention is counted as the fused kernel that a GPU runs, which keeps no matrix of scores.

    python benchmarks/attention_cost.py
    python benchmarks/attention_cost.py --config gpu-16gb --attention none,none,full,full
"""

from __future__ import annotations

import argparse
import json
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mdaug import cli
from mdaug.models.hybrid_unet import HybridUNet2DModel
from shards import provenance

KINDS = ("full", "hybrid", "none")
U_NET = ("block_out_channels", "layers_per_block", "num_heads", "window_size", "norm_num_groups")


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None):
    """scaled_dot_product_attention as a GPU runs it; the meta device would take the path that writes scores out."""
    if attn_mask is not None:
        attn_mask = attn_mask.expand(len(query), -1, -1, -1)
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True)[0]


def cost(network: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """Return (FLOPs of a forward pass, bytes that autograd keeps of it beside the parameters), on the meta device."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that no address is given out twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with (
        mock.patch.object(nn.functional, "scaled_dot_product_attention", fused),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        FlopCounterMode(display=False) as counter,
    ):
        network(*inputs)
    return counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="sides of the latents")
    parser.add_argument("--attention", nargs="+", default=KINDS, help="the first is what the others are compared with")
    options = parser.parse_args()

    flags = ["--config", options.config, "--data_dir=d", "--output_dir=o", "--vqvae_path=v"]
    training = cli.parse("train-ldm", flags)
    settings = {name: getattr(training, name) for name in U_NET}
    print(f"{'latents':>9s}  {'attention':20s}{'M params':>9s}{'GFLOP':>9s}{'':8s}{'MB kept':>9s}")
    rows = []
    for size in options.sizes:
        first = None
        for attention in options.attention:
            with torch.device("meta"):
                network = HybridUNet2DModel(attention=attention, num_classes=10, **settings).bfloat16()
                latents = torch.empty(2, 4, size, size, dtype=torch.bfloat16)
                labels = torch.zeros(2, dtype=torch.long)
            flops, kept_of_one = cost(network, latents[:1], labels[:1], labels[:1])
            kept = cost(network, latents, labels, labels)[1] - kept_of_one
            first = first or (flops, kept)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            counted = f"{flops / 1e9:9.1f} ({flops / first[0]:.2f}){kept / 1e6:9.1f} ({kept / first[1]:.2f})"
            print(f"{f'{size} x {size}':>9s}  {attention:20s}{parameters / 1e6:9.1f}{counted}")
            rows.append({"size": size, "attention": attention, "parameters": parameters, "flops": flops, "kept": kept})
    card = {"benchmark": "attention_cost", "version": provenance.code_version(), "torch": torch.__version__}
    print(json.dumps({**card, "config": options.config, "results": rows}))


if __name__ == "__main__":
    main()
