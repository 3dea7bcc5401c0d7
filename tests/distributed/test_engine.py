"""One step of the engine is one step of plain torch: mean gradient, clipping by norm, AdamW."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks

LR = 0.1


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def _batches(steps: int, ranks: int) -> torch.Tensor:
    """Random inputs (steps, ranks, micro batch, features), of growing size, so that the clip binds only later."""
    inputs = torch.randn(steps, ranks, 4, 5, generator=torch.Generator().manual_seed(1))
    return inputs * torch.arange(1, steps + 1).view(-1, 1, 1, 1) ** 2


def _engine_weights(clip: float, steps: int) -> list[list[float]]:
    from mdaug import distributed
    from mdaug.training.batches import BatchPlan
    from mdaug.training.deepspeed_json import deepspeed_config
    from mdaug.training.engine import Engine
    from mdaug.training.options import TrainingConfig

    distributed.init()
    ranks = distributed.world_size()
    config = TrainingConfig(Path("d"), Path("o"), lr=LR, max_grad_norm=clip, mixed_precision="no")
    plan = BatchPlan(4 * ranks, 4, ranks, 1, steps=steps, num_samples=64, val_every=64, save_every=64)
    network = _network()
    engine = Engine(network, config, deepspeed_config(config, plan, "no"))
    for batch in _batches(steps, ranks):
        engine.backward(engine(batch[distributed.rank()]).square().mean())
        engine.step(LR)
    return network.weight.tolist()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_step_is_that_of_torch(ranks, clip):
    steps = 4
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
    norms = []
    for batch in _batches(steps, ranks):
        network(batch.flatten(0, 1)).square().mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), clip or float("inf"))))
        optimizer.step()
        optimizer.zero_grad()
    assert min(norms) < 5.0 < max(norms)
    for weight in run_ranks(ranks, _engine_weights, clip, steps):
        torch.testing.assert_close(torch.tensor(weight), network.weight.detach(), rtol=1e-5, atol=1e-6)


def _timeouts() -> list[float]:
    from mdaug import distributed

    distributed.init()
    cpu = torch.device("cpu")
    groups = (torch.distributed.group.WORLD, distributed._workers)
    return [group._get_backend(cpu).options._timeout.total_seconds() for group in groups]


def test_collectives_wait_as_long_as_we_say():
    assert run_ranks(1, _timeouts) == [[600.0, 86400.0]]  # torch's own: 1800
