"""What a training holds in memory, before it starts, and the micro batch that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from mdaug import distributed
from mdaug.training.deepspeed_json import stage_of
from mdaug.training.engine import resolve_precision
from mdaug.training.run import TrainingConfig
from mdaug.training.scaling import Sharding, buffer_bytes, network_bytes
from mdaug.training.vqvae import VQVAEConfig

if TYPE_CHECKING:
    from mdaug.training.ldm_task import LDMTask
    from mdaug.training.vqvae_task import VQVAETask

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


def autocast_dtype(config: TrainingConfig) -> torch.dtype | None:
    """Return what the forward pass computes in on this rank's device; None is fp32."""
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[sharding(config).precision]


def estimate_ldm(task: LDMTask, batch: int) -> Memory:
    """Return what training the diffusion model with micro batches of `batch` latents takes on this rank's device.

    As `estimate`, with this rank's pieces of the averaged weights.
    """
    config, device = task.config, distributed.device()
    dtype = autocast_dtype(config)
    module, shape = task.module.to(device), task.geometry["latent_shape"]

    def need(count: int) -> int:
        latents = torch.zeros(count, *shape, device=device)
        number = torch.zeros(count, dtype=torch.long, device=device)
        # Random numbers of dropout are given back: this rank would train with others.
        with torch.random.fork_rng(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
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
    dtype = autocast_dtype(config)
    height, width, channels = task.image_shape
    module = task.module.to(device).eval()

    def need(count: int) -> int:
        images = torch.zeros(count, channels, height, width, device=device)
        copy = images.clone().requires_grad_()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
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
    dtype = autocast_dtype(task.config)
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            reconstruction, _, _, commitment = module.eval()(images)
        (task.distance(reconstruction, images)[0].mean() + commitment).backward()
        if task.adversary is not None:
            (task.adversary.network(images) + task.adversary.network(reconstruction.detach())).mean().backward()
    finally:
        del room
        module.train().zero_grad(set_to_none=True)
        if task.adversary is not None:
            task.adversary.network.zero_grad(set_to_none=True)
