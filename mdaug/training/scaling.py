"""What data-parallel training costs on N GPUs, on paper: memory of the networks, bytes moved, time of a step.

The formulas are those of ZeRO (Rajbhandari et al., SC 2020, sections 5 and 7) as DeepSpeed 0.19 carries them out;
`tests/distributed/test_scaling.py` compares them with what the engine holds and sends. docs/scaling.md tells more.
"""

from __future__ import annotations

from dataclasses import dataclass

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
