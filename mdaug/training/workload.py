"""What a network takes in training, counted on tensors without data: weights, activations, FLOPs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from mdaug.training.cost import PERSISTENT, Sharding, Workload, network_bytes


def unet_workload(unet: nn.Module, latent_shape: list[int], batch: int, precision: str, averages: int) -> Workload:
    """Count what the training of a diffusion U-Net takes on each rank.

    Args:
        unet: the network; nothing is computed with it.
        latent_shape: (c, h, w).
        batch: micro batch.
        precision: no, bf16 or fp16; the latter is counted as bf16.
        averages: averages of the weights.
    """

    def forward(network: Callable, batch: int) -> Any:
        label = torch.zeros(batch, dtype=torch.long)
        return network(torch.zeros(batch, *latent_shape), label, label).sample

    kept, flops = _count(unet, forward, precision, batch)
    sizes = _sizes(unet)
    return Workload(sum(sizes), _persistent(sizes), 0, kept, 3 * flops, averages)


def vqvae_workload(
    module: nn.Module,
    image_shape: list[int],
    batch: int,
    precision: str,
    perceptual: nn.Module | None = None,
    critic: nn.Module | None = None,
) -> Workload:
    """Count what the training of a VQ-VAE takes on each rank.

    The engine's graph is there while LPIPS or the discriminator, whichever is larger, has its own.

    Args:
        module: the network that DeepSpeed trains; nothing is computed with it.
        image_shape: [H, W, C].
        batch: micro batch.
        precision: no, bf16 or fp16; the latter is counted as bf16.
        perceptual: LPIPS, where it is part of the loss.
        critic: the discriminator, where there is one.
    """
    height, width, channels = image_shape

    def images(batch: int) -> torch.Tensor:
        return torch.zeros(batch, channels, height, width)

    def single(network: Callable, batch: int) -> Any:
        return network(images(batch))

    def pair(network: Callable, batch: int) -> Any:
        return network(images(batch).requires_grad_(torch.is_grad_enabled()), images(batch))

    module.eval()  # else the codebook remembers its vectors
    kept, flops = _count(module, single, precision, batch)
    module.train()
    flops, beside, around = 3 * flops, 0, [0]
    if perceptual is not None:
        more, twice = _count(perceptual, pair, "no", batch)
        around.append(more)
        beside += sum(p.nbytes for p in perceptual.parameters())
        flops += 1.5 * twice  # both images forward, one of them backward
    if critic is not None:
        more, once = _count(critic, single, precision, batch)
        around.append(2 * more)
        beside += network_bytes(sum(p.numel() for p in critic.parameters()), Sharding(0, 1))
        flops += (2 + 6) * once  # its judgement of the reconstruction, and its own step on both images
    sizes = _sizes(module)
    return Workload(sum(sizes), _persistent(sizes), beside, kept + max(around), flops, 0)


def _count(network: nn.Module, forward: Callable, precision: str, batch: int) -> tuple[int, float]:
    """Return (bytes that autograd keeps of a micro batch and the gradients in flight, FLOPs of one sample) on a GPU.

    Tensors without data give shapes, types and which operators run; no GPU is needed.
    """
    with FakeTensorMode(), torch.device("cuda"), autocast_of_gpu(precision != "no"):
        tensors = {name: torch.empty(buffer.shape, dtype=buffer.dtype) for name, buffer in network.named_buffers()}
        for name, value in network.named_parameters():
            weight = torch.empty(value.shape, dtype=value.dtype)
            tensors[name] = nn.Parameter(weight, requires_grad=value.requires_grad)

        def without_data(*inputs: torch.Tensor) -> Any:
            return functional_call(network, tensors, inputs)

        kept, largest = saved_bytes(lambda: forward(without_data, batch))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(without_data, 1)
    return kept + 2 * largest, counter.get_total_flops()


def saved_bytes(forward: Callable[[], Any]) -> tuple[int, int]:
    """Return (bytes that autograd keeps for the backward pass of `forward`, bytes of the largest tensor of these).

    Tensors that share memory count once, parameters do not count.
    """
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()  # tensors without data have no address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result  # the graph lives until here, so no address was given out twice
    return sum(kept.values()), max(kept.values(), default=0)


@contextlib.contextmanager
def autocast_of_gpu(enabled: bool) -> Iterator[None]:
    """Switch autocast to bf16 on; torch.autocast("cuda") would refuse where there is no GPU."""
    previous = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", previous[0])
        torch.set_autocast_dtype("cuda", previous[1])
        torch.clear_autocast_cache()


def _sizes(module: nn.Module) -> list[int]:
    return [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]


def _persistent(sizes: list[int]) -> int:
    return sum(size for size in sizes if size < PERSISTENT)
