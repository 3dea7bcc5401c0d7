"""What a training costs on so many ranks, as formulas: memory, traffic, time."""

from __future__ import annotations

from dataclasses import dataclass

from mdaug import distributed
from mdaug.training.deepspeed_json import stage_of
from mdaug.training.engine import resolve_precision
from mdaug.training.gradient_buckets import BUCKET_BYTES
from mdaug.training.options import TrainingConfig

MASTER, MOMENTS = 4, 8  # bytes of a fp32 weight, and of the two moments of AdamW
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


GPUS = {  # longer names before the shorter ones that they contain
    "H200": GPU(989e12, 141, 450),
    "H100 PCIe": GPU(756e12, 80, 300),
    "H100 NVL": GPU(835e12, 94, 300),
    "H100": GPU(989e12, 80, 450),
    "A100": GPU(312e12, 80, 300),
    "L40S": GPU(362e12, 48, 32),
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
    if how.ranks == 1:
        return 0
    if how.stage == 0:
        return BUCKET_BYTES  # a gradient goes when its bucket is sent, and comes back as a part of it
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
    def efficiency(self) -> float:
        """Share of the time spent computing, at worst: that of N times one GPU's speed which N GPUs reach."""
        return self.computing / self.longest


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    networks: int
    """Weights, their averages, gradients and optimizer states of all networks."""
    activations: int
    """What the backward pass of one micro batch needs."""
    buffers: int
    """Gradients and weights on their way to and from other ranks."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.networks + self.activations + self.buffers

    def __str__(self) -> str:
        """Return the line that is printed before the first step."""
        return (
            f"memory: about {self.total / 1e9:.2f} GB per device (networks and optimizers {self.networks / 1e9:.2f}, "
            f"micro batch {self.activations / 1e9:.2f}, communication {self.buffers / 1e9:.2f}), beside what the "
            "libraries take"
        )


def memory(load: Workload, how: Sharding) -> Memory:
    """Return what a training takes on each rank."""
    networks = network_bytes(load.parameters, how, load.persistent) + load.beside
    networks += average_bytes(load.parameters, load.averages, how.ranks)
    return Memory(networks, load.activations, buffer_bytes(load.parameters, how))


def sharding(config: TrainingConfig) -> Sharding:
    """Return how this run's engine divides a network over the ranks."""
    precision = resolve_precision(config.mixed_precision, distributed.device())
    return Sharding(stage_of(config), distributed.world_size(), precision=precision)
