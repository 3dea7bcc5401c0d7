"""What a training costs: memory, work and traffic of its networks, on one device and on many."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from mdaug import distributed
from mdaug.training.deepspeed_json import stage_of
from mdaug.training.engine import resolve_precision
from mdaug.training.options import LDMConfig, TrainingConfig, VQVAEConfig
from shards.validation import height_width

if TYPE_CHECKING:
    from mdaug.training.ldm_task import LDMTask
    from mdaug.training.vqvae_task import VQVAETask


MASTER, MOMENTS = 4, 8  # bytes of a fp32 master weight, and of the two moments of AdamW
BUCKET = 50_000_000  # elements: reduce_bucket_size in deepspeed_configs/
PERSISTENT = 100_000  # elements below which ZeRO-3 leaves a parameter whole: stage3_param_persistence_threshold
REUSED = 1_000_000_000  # elements up to which ZeRO-3 keeps gathered weights for the backward pass (DeepSpeed's default)


@dataclass(frozen=True)
class GPU:
    """Figures of the makers' data sheets."""

    flops: float
    """Dense bf16 or fp16 FLOP/s, without sparsity."""
    memory_gb: int
    link_gb_s: float
    """To the other GPUs of the machine, GB/s in one direction: NVLink, or PCIe x16."""


GPUS = {
    "H200": GPU(989e12, 141, 450),
    "H100": GPU(989e12, 80, 450),
    "A100": GPU(312e12, 80, 300),
    "L40": GPU(181e12, 48, 32),
    "A10": GPU(125e12, 24, 32),
    "V100": GPU(125e12, 32, 150),
    "T4": GPU(65e12, 16, 16),
}


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed trains a network on several ranks."""

    stage: int
    """ZeRO stage, 0 to 3."""
    ranks: int
    passes: int = 1
    """Micro batches per rank and optimizer step."""
    precision: str = "no"
    """no (fp32), bf16 (torch_autocast over fp32 weights) or fp16 (from stage 1 on DeepSpeed's fp16 section)."""

    @property
    def weight(self) -> int:
        """Bytes of a weight: fp32 except under the fp16 section."""
        return 2 if self.precision == "fp16" and self.stage > 0 else 4

    @property
    def sent_gradient(self) -> int:
        """Bytes of a gradient on its way: stage 0 reduces fp32 ones even under autocast."""
        return 4 if self.precision == "no" or self.stage == 0 else 2

    @property
    def sent_weight(self) -> int:
        """Bytes of a weight that ZeRO-3 gathers for a pass."""
        return 4 if self.precision == "no" else 2


def network_bytes(parameters: int, how: Sharding, persistent: int = 0) -> int:
    """Return the bytes of weights, gradients and AdamW's states on each rank.

    From stage 1 on DeepSpeed keeps fp32 master weights beside the weights, also where these are fp32. Stage 1 holds
    whole gradients until the last micro batch.

    Args:
        parameters: number of elements.
        how: ZeRO stage, ranks, micro batches and precision.
        persistent: elements that stage 3 leaves whole.
    """
    weight = gradient = how.weight
    if how.stage == 0:
        return parameters * (weight + gradient + MOMENTS)
    if how.stage == 1:
        return parameters * (weight + gradient) + parameters * (MASTER + MOMENTS) // how.ranks
    if how.stage == 2:
        return parameters * weight + parameters * (gradient + MASTER + MOMENTS) // how.ranks
    return weight * persistent + parameters * (weight + gradient + MASTER + MOMENTS) // how.ranks


def average_bytes(parameters: int, averages: int, ranks: int) -> int:
    """Return the bytes of the averaged weights on each rank: fp32, cut over the ranks at every stage."""
    return averages * MASTER * parameters // ranks


def buffer_bytes(parameters: int, how: Sharding) -> int:
    """Return the bytes of what is on its way on each rank: buckets of gradients, and gathered weights of stage 3."""
    if how.stage == 0 or how.ranks == 1:
        return 0
    if how.stage < 3:
        return 2 * BUCKET * how.weight  # two in turns, since reduction overlaps with the backward pass
    buckets = BUCKET * how.weight + (BUCKET * 2 if how.precision == "bf16" else 0)
    return buckets + min(parameters, REUSED) * how.sent_weight


@dataclass(frozen=True)
class Traffic:
    """Bytes that each rank brings to, or takes from, the collectives of one optimizer step."""

    all_reduced: int
    reduce_scattered: int
    all_gathered: int

    def sent(self, ranks: int) -> float:
        """Return the bytes that each rank sends if the collectives run along a ring."""
        share = (ranks - 1) / ranks
        return share * (2 * self.all_reduced + self.reduce_scattered + self.all_gathered)


def traffic(parameters: int, how: Sharding, persistent: int = 0, averaged: bool = False) -> Traffic:
    """Return the bytes of one optimizer step.

    Stages 0 and 1 reduce gradients once per step, stages 2 and 3 at every micro batch. DeepSpeed all-reduces them at
    stages 1 and 2, too. Stage 3 gathers weights once per micro batch, and again for the backward pass where they are
    more than it may keep.

    Args:
        parameters: number of elements.
        how: ZeRO stage, ranks, micro batches and precision.
        persistent: elements that stage 3 leaves whole.
        averaged: averaged weights follow the masters after the step. A rank averages the piece that it holds, but
            under the fp16 section DeepSpeed shows masters only whole, summed over the ranks, at stages 1 and 2.
    """
    if how.ranks == 1:
        return Traffic(0, 0, 0)
    gradients = how.sent_gradient * parameters * (how.passes if how.stage >= 2 else 1)
    if how.stage == 0:
        return Traffic(gradients, 0, 0)
    if how.stage < 3:
        masters = MASTER * parameters if averaged and how.weight == 2 else 0
        return Traffic(gradients + masters, 0, how.weight * parameters)
    gathers = how.passes * (1 if parameters <= REUSED else 2)
    weights = gathers * how.sent_weight * (parameters - persistent) + how.weight * persistent
    return Traffic(0, gradients, weights)


def ring_bandwidth(gpus_per_node: int, nodes: int, link: float, network: float) -> float:
    """Return the bytes/s at which a ring moves on: its narrowest place, the GPUs' links or the nodes' network.

    Args:
        gpus_per_node: ranks on each machine.
        nodes: machines.
        link: bytes/s between GPUs of a machine, in one direction.
        network: bytes/s out of a machine, all its adapters together.
    """
    if nodes == 1:
        return link
    return network if gpus_per_node == 1 else min(link, network)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    computing: float
    moving: float
    """Collectives; DeepSpeed hides a part of them behind the backward pass."""

    @property
    def longest(self) -> float:
        """Nothing is hidden."""
        return self.computing + self.moving

    @property
    def shortest(self) -> float:
        """All is hidden that can be."""
        return max(self.computing, self.moving)

    @property
    def efficiency(self) -> float:
        """Share of the time spent computing, at worst: that of N times one GPU's speed which N GPUs reach."""
        return self.computing / self.longest


BYTES_WEIGHT, BYTES_GRADIENT, BYTES_ADAM = 4, 4, 8  # fp32: one each, and two moments
CPU_BATCH = 16  # --batch_size auto without a GPU: larger ones gain little there
LARGEST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    model: int
    """Weights, their average, gradients and optimizer states of all networks."""
    activations: int
    """What the backward pass needs of one micro batch, and the gradients in flight."""

    def __str__(self) -> str:
        """Return the line that is printed before the first step."""
        total = self.model + self.activations
        return (
            f"memory: about {total / 1e9:.2f} GB per device (networks and optimizers {self.model / 1e9:.2f}, "
            f"micro batch {self.activations / 1e9:.2f}), beside what the libraries take"
        )


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


def sharding(config: TrainingConfig) -> Sharding:
    """Return how this run's engine divides a network over the ranks."""
    precision = resolve_precision(config.mixed_precision, distributed.device())
    return Sharding(stage_of(config), distributed.world_size(), precision=precision)


def estimate_ldm(task: LDMTask, batch: int) -> Memory:
    """Return what training the diffusion model with micro batches of `batch` latents takes on this rank's device.

    As `estimate`, with this rank's pieces of the averaged weights.
    """
    config, device = task.config, distributed.device()
    precision = sharding(config).precision
    module, shape = task.module.to(device), task.geometry["latent_shape"]

    def need(count: int) -> int:
        latents = torch.zeros(count, *shape, device=device)
        number = torch.zeros(count, dtype=torch.long, device=device)
        # Random numbers of dropout are given back: this rank would train with others.
        with torch.random.fork_rng(), distributed.autocast(precision, device):
            own, largest = saved_bytes(lambda: module(latents, number, number))
        return own + 2 * largest + 4 * latents.nbytes  # latents, noise, noisy latents and target

    one, two = need(1), need(2)
    average = sum(piece.nbytes for piece in task.ema.state().values())
    parameters, how = sum(p.numel() for p in module.parameters()), sharding(config)
    activations = one + (batch - 1) * (two - one) + buffer_bytes(parameters, how)
    return Memory(network_bytes(parameters, how) + average, activations)


def estimate(task: VQVAETask, batch: int) -> Memory:
    """Return what training with micro batches of `batch` images takes on this rank's device.

    Two forward passes, of one and of two images, tell what grows with the batch. The engine's graph is there while
    LPIPS or the discriminator, whichever is larger, has its own.
    """
    config, device = task.config, distributed.device()
    precision = sharding(config).precision
    height, width, channels = task.image_shape
    module = task.module.to(device).eval()

    def need(count: int) -> int:
        images = torch.zeros(count, channels, height, width, device=device)
        copy = images.clone().requires_grad_()
        with distributed.autocast(precision, device):
            own, largest = saved_bytes(lambda: module(images))
        around = [saved_bytes(lambda: task.distance(copy, images))[0]]
        if task.adversary is not None:
            network = task.adversary.network
            around.append(saved_bytes(lambda: (network(images), network(copy)))[0])
        return own + max(around) + 2 * largest + 2 * images.nbytes

    one, two = need(1), need(2)
    module.train()
    parameters, how = sum(p.numel() for p in module.parameters()), sharding(config)
    model = network_bytes(parameters, how)
    if task.adversary is not None:
        critic = sum(p.numel() for p in task.adversary.network.parameters())
        model += (BYTES_WEIGHT + BYTES_GRADIENT + BYTES_ADAM) * critic
    if task.perceptual is not None:
        model += BYTES_WEIGHT * sum(p.numel() for p in task.perceptual.parameters())
    return Memory(model, one + (batch - 1) * (two - one) + buffer_bytes(parameters, how))


def candidates(config: VQVAEConfig, num_samples: int, largest: int) -> list[int]:
    """Return micro batches up to `largest`, falling: divisors of a given global batch, else powers of two."""
    ranks = distributed.world_size()
    largest = max(1, min(largest, num_samples // ranks))
    if config.global_batch_size is not None:
        share = config.global_batch_size // ranks
        return [size for size in range(min(share, largest), 0, -1) if share % size == 0] or [1]
    return [1 << power for power in range(largest.bit_length() - 1, -1, -1)]


def choose_batch_size(task: VQVAETask, num_samples: int) -> int:
    """Return the micro batch of `--batch_size auto`, the same on all ranks.

    On a GPU the largest candidate whose forward and backward pass fits beside the optimizer's states, found by
    trying; on a CPU the largest up to 16.
    """
    if distributed.device().type == "cpu":
        return candidates(task.config, num_samples, CPU_BATCH)[0]
    sizes = candidates(task.config, num_samples, LARGEST_BATCH)
    found = first_that_fits(sizes, lambda size: _try(task, size))
    return int(distributed.gather_over_ranks(torch.tensor([found], device=distributed.device())).min())


def first_that_fits(sizes: list[int], attempt: Callable[[int], None]) -> int:
    """Return the first of falling sizes that does not run out of memory (accelerate's find_executable_batch_size)."""
    from accelerate.utils import find_executable_batch_size

    remaining = iter(sizes[1:])

    @find_executable_batch_size(starting_batch_size=sizes[0], reduce_batch_size_fn=lambda: next(remaining, 0))
    def run(batch_size: int) -> int:
        attempt(batch_size)
        return batch_size

    return run()


def _try(task: VQVAETask, batch: int) -> None:
    """Run one forward and backward pass, with room taken for gradients and the optimizer's moments."""
    device = distributed.device()
    module = task.module.to(device)
    room = torch.empty(estimate(task, 1).model, dtype=torch.uint8, device=device)
    height, width, channels = task.image_shape
    images = torch.zeros(batch, channels, height, width, device=device)
    precision = sharding(task.config).precision
    try:
        with distributed.autocast(precision, device):
            reconstruction, _, _, commitment = module.eval()(images)
        (task.distance(reconstruction, images)[0].mean() + commitment).backward()
        if task.adversary is not None:
            (task.adversary.network(images) + task.adversary.network(reconstruction.detach())).mean().backward()
    finally:
        del room
        module.train().zero_grad(set_to_none=True)
        if task.adversary is not None:
            task.adversary.network.zero_grad(set_to_none=True)


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
    from mdaug.training.ldm_task import build_unet

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
    return sum(number for number in parameters if number < PERSISTENT)
