"""What a training computes and holds, counted without data and without computing it."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from mdaug.training import scaling
from mdaug.training.ldm import LDMConfig
from mdaug.training.memory import saved_bytes
from mdaug.training.run import TrainingConfig
from mdaug.training.vqvae import VQVAEConfig
from shards.size import height_width


@dataclasses.dataclass(frozen=True)
class Workload:
    """One rank's share of a training."""

    parameters: int
    """Elements that DeepSpeed trains."""
    persistent: int
    """Those of them that ZeRO-3 leaves whole."""
    beside: int
    """Bytes of what every rank holds whole: LPIPS, discriminator with its optimizer."""
    activations: int
    """Bytes that the backward pass of one micro batch needs."""
    flops_per_sample: float
    """Forward and backward."""
    averages: int
    """Averages of the weights, each cut over the ranks."""


def count(config: TrainingConfig, precision: str, channels: int, latent_shape: list[int], classes: int) -> Workload:
    """Count what the training of a configuration takes on each rank.

    Args:
        config: of train-vqvae or train-ldm; `batch_size` must be a number.
        precision: no, bf16 or fp16; the latter is counted as bf16.
        channels: of the images.
        latent_shape: (c, h, w), for the diffusion model.
        classes: number of classes, for the diffusion model.
    """
    batch = config.batch_size
    if isinstance(config, VQVAEConfig):
        return _vqvae(config, precision, channels, batch)
    assert isinstance(config, LDMConfig)
    from mdaug.training.unet import build_unet

    unet = build_unet(config, latent_shape, classes)

    def forward(network: Callable, batch: int) -> Any:
        label = torch.zeros(batch, dtype=torch.long)
        return network(torch.zeros(batch, *latent_shape), label, label).sample

    parameters = _numbers(unet)
    own = _count(unet, forward, precision, batch)
    return Workload(sum(parameters), _persistent(parameters), 0, own[0], 3 * own[1], 1 + len(config.ema_profiles))


def _vqvae(config: VQVAEConfig, precision: str, channels: int, micro_batch: int) -> Workload:
    from mdaug.models.discriminator import PatchDiscriminator
    from mdaug.models.perceptual import PerceptualLoss
    from mdaug.training.vqvae_task import build_module

    size = height_width(config.image_size)
    shape = (channels, *size)
    module, _ = build_module(config, channels)
    parameters = _numbers(module)

    def single(network: Callable, batch: int) -> Any:
        return network(torch.zeros(batch, *shape))

    saved, flops = _count(module, single, precision, micro_batch)
    beside, flops, around = 0, 3 * flops, [0]

    def pair(network: Callable, batch: int) -> Any:
        return network(torch.zeros(batch, *shape, requires_grad=torch.is_grad_enabled()), torch.zeros(batch, *shape))

    if config.use_perceptual:
        with warnings.catch_warnings():  # lpips calls torchvision in an old way
            warnings.simplefilter("ignore")
            lpips = PerceptualLoss(config.perceptual_net, random_backbone=True)
        more, twice = _count(lpips, pair, "no", micro_batch)
        around.append(more)
        beside += 4 * sum(p.numel() for p in lpips.parameters())
        flops += 1.5 * twice  # both images forward, one of them backward
    if config.use_discriminator:
        critic = PatchDiscriminator(channels, size, config.disc_channels)
        more, once = _count(critic, single, precision, micro_batch)
        around.append(2 * more)
        beside += (4 + 4 + 8) * sum(p.numel() for p in critic.parameters())
        flops += (2 + 6) * once  # its judgement of the reconstruction, and its own step on both images
    return Workload(sum(parameters), _persistent(parameters), beside, saved + max(around), flops, 0)


def _count(network: nn.Module, forward: Callable, precision: str, batch: int) -> tuple[int, float]:
    """Return (bytes that autograd keeps of a micro batch and the gradients in flight, FLOPs of one sample) on a GPU.

    Tensors without data tell shapes, types and which operators run; no GPU needs to be there.
    """
    with FakeTensorMode(), torch.device("cuda"), _autocast(precision != "no"):
        tensors = {name: torch.empty(buffer.shape, dtype=buffer.dtype) for name, buffer in network.named_buffers()}
        for name, value in network.named_parameters():
            tensors[name] = nn.Parameter(torch.empty(value.shape), requires_grad=value.requires_grad)

        def paper(*inputs: torch.Tensor) -> Any:
            return functional_call(network, tensors, inputs)

        saved, largest = saved_bytes(lambda: forward(paper, batch))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(paper, 1)
    return saved + 2 * largest, counter.get_total_flops()


@contextlib.contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
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


def _numbers(module: nn.Module) -> list[int]:
    return [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]


def _persistent(parameters: list[int]) -> int:
    return sum(number for number in parameters if number < scaling.PERSISTENT)
