"""What a training step of the diffusion U-Net asks of a GPU, counted operator by operator on tensors without data.

No GPU is needed and nothing is timed. Every operator that computes or copies counts as one kernel; its bytes are those
of its inputs and outputs, its FLOPs those of torch's FlopCounterMode. The roofline gives each the longer of its bytes
at 80 % of the card's bandwidth and its FLOPs at 60 % of its peak: optimistic for convolutions, so that ratios are safer
than milliseconds. The forward pass is counted; torch runs no backward pass of a GPU where there is none, so the step
takes it for twice the forward pass. Norm of the gradients, AdamW and averages are added by their bytes.

    python benchmarks/step_cost.py                                  # the default U-Net, 32 x 32 x 4, batch 128
    python benchmarks/step_cost.py --config gpu-16gb --batch_size 32 --size 16
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mdaug import cli
from mdaug.training.ldm_task import build_unet
from mdaug.training.workload import autocast_of_gpu
from shards import provenance

CARDS = {
    "H100": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "T4": (65e12, 0.32e12),
}  # FLOP/s of bf16 or fp16, bytes/s, of the data sheets
PASSES = 3  # a backward pass counts twice a forward pass
COMPUTE, BANDWIDTH = 0.6, 0.8  # shares of them that kernels are taken to reach
ADAMW, NORM, AVERAGE = 28, 4, 12  # bytes per parameter: read and written by the optimizer, the norm, an average
KINDS = (
    ("convolution", ("convolution",)),
    ("matrix product", ("mm", "addmm", "bmm", "baddbmm")),
    ("attention", ("scaled_dot_product",)),
    ("norm and SiLU", ("group_norm", "silu")),
    ("cast", ("_to_copy",)),
    ("copy", ("clone", "copy_", "roll", "constant_pad", "cat", "stack", "slice_backward", "select_backward")),
)
FREE = (
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "detach", "alias", "slice",
    "select", "split", "as_strided", "unbind", "empty", "empty_like", "new_empty", "chunk", "unfold",
)  # fmt: skip


class Kernels(TorchDispatchMode):
    """Collects (name, bytes, FLOPs) of every operator."""

    def __init__(self, counter: FlopCounterMode):
        super().__init__()
        self.counter = counter
        self.rows: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        if function.namespace == "aten" and name not in FREE:
            tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
            held = {id(each): each.numel() * each.element_size() for each in tensors}  # broadcast ones count in full
            self.rows.append((name, sum(held.values()), self.counter.get_total_flops() - before))
        return result


def fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
):
    """scaled_dot_product_attention as the kernel that a GPU runs."""
    if attn_mask is not None:
        attn_mask = attn_mask.expand(len(query), -1, -1, -1)
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True)[0]


def count(config: Any, latent: list[int], batch: int) -> tuple[list[tuple[str, int, int]], int]:
    """Return the kernels of a forward pass under bf16 autocast in channels_last, and the parameters."""
    with torch.device("meta"):
        network = build_unet(config, latent, 10)

    def inputs() -> tuple[torch.Tensor, ...]:
        label = torch.zeros(batch, dtype=torch.long)
        return torch.empty(batch, *latent, memory_format=torch.channels_last), label, label

    return kernels_of(network, inputs), sum(parameter.numel() for parameter in network.parameters())


def kernels_of(network: nn.Module, inputs: Callable[[], tuple[torch.Tensor, ...]]) -> list[tuple[str, int, int]]:
    """Return the kernels of a forward pass of a network on the meta device, as a GPU would run them."""
    with FakeTensorMode(), torch.device("cuda"), autocast_of_gpu(True):
        layout = torch.channels_last
        tensors: dict[str, torch.Tensor] = {
            name: nn.Parameter(
                torch.empty(value.shape, memory_format=layout if value.dim() == 4 else torch.contiguous_format)
            )
            for name, value in network.named_parameters()
        }
        given = inputs()
        counter = FlopCounterMode(display=False)
        with mock.patch.object(nn.functional, "scaled_dot_product_attention", fused), counter, Kernels(counter) as seen:
            functional_call(network, tensors, given)
        return seen.rows


def milliseconds(moved: float, flops: float, card: str) -> float:
    peak, bandwidth = CARDS[card]
    return 1e3 * max(moved / (BANDWIDTH * bandwidth), flops / (COMPUTE * peak))


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS if any(name.startswith(part) or part in name for part in parts)), "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="side of the latents")
    parser.add_argument("--average_every", type=int, default=8, help="steps between two updates of the averages")
    parser.add_argument("--copied", action="store_true", help="averages that copy channels_last weights first")
    options = parser.parse_args()

    config = cli.parse("train-ldm", ["--config", options.config, "--data_dir=d", "--output_dir=o", "--vqvae_path=v"])
    rows, parameters = count(config, [4, options.size, options.size], options.batch_size)
    averages = AVERAGE * (1 + len(config.ema_profiles)) + (8 if options.copied else 0)
    step = parameters * (NORM + ADAMW + averages / options.average_every)
    table: dict[str, Counter[str]] = {}
    for name, moved, flops in rows:
        row = table.setdefault(kind_of(name), Counter())
        row.update({"kernels": PASSES, "bytes": PASSES * moved, "flops": PASSES * flops})
        row.update({card: PASSES * milliseconds(moved, flops, card) for card in CARDS})
    table["optimizer and averages"] = Counter(
        {"kernels": 0, "bytes": step, "flops": 0, **{card: milliseconds(step, 0, card) for card in CARDS}}
    )
    print(f"{'':24s}{'kernels':>8s}{'GB':>8s}{'TFLOP':>8s}" + "".join(f"{card + ', ms':>10s}" for card in CARDS))
    total: Counter[str] = Counter()
    for kind, row in sorted(table.items(), key=lambda item: -item[1]["H100"]):
        total.update(row)
        times = "".join(f"{row[card]:10.1f}" for card in CARDS)
        print(f"{kind:24s}{row['kernels']:8.0f}{row['bytes'] / 1e9:8.1f}{row['flops'] / 1e12:8.2f}{times}")
    times = "".join(f"{total[card]:10.1f}" for card in CARDS)
    print(f"{'a step':24s}{total['kernels']:8.0f}{total['bytes'] / 1e9:8.1f}{total['flops'] / 1e12:8.2f}{times}")
    mfu = {card: 1e3 * total["flops"] / total[card] / CARDS[card][0] for card in CARDS}
    speed = {card: 1e3 * options.batch_size / total[card] for card in CARDS}
    print("MFU on paper  " + ", ".join(f"{card} {100 * mfu[card]:.0f} % ({speed[card]:.0f} img/s)" for card in CARDS))
    record: dict[str, Any] = {
        "benchmark": "step_cost",
        "version": provenance.code_version(),
        "torch": torch.__version__,
    }
    record |= {"config": options.config, "batch": options.batch_size, "parameters": parameters, "total": dict(total)}
    print(json.dumps({**record, "kinds": {kind: dict(row) for kind, row in table.items()}, "mfu": mfu}))


if __name__ == "__main__":
    main()
