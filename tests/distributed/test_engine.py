"""One step of the engine is one step of plain torch: mean gradient, clipping by norm, AdamW."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import distributed_c10d

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
    return [group._get_backend(cpu).options._timeout.total_seconds() for group in distributed_c10d._world.pg_map]


def test_collectives_wait_as_long_as_we_say():
    assert run_ranks(2, _timeouts) == [[600.0]] * 2  # torch's own: 1800; one group, so no further mesh of connections


def _meetings(slow: int) -> list[float]:
    import time

    from mdaug import distributed

    distributed.init()
    torch.distributed.set_timeout(timedelta(seconds=2))  # a collective would give up
    late, begun = [], time.time()
    for number in range(50):
        assert distributed.from_main({"number": number} if distributed.is_main() else None) == {"number": number}
    for done_by in (slow, 0, 1):
        if distributed.rank() == done_by:
            time.sleep(3)
            late.append(time.time())
        distributed.wait_for_work()
    assert time.time() - begun >= 9
    return late


def test_ranks_wait_for_work_at_the_store_however_long_it_takes():
    results = run_ranks(4, _meetings, 3)
    assert [len(late) for late in results] == [1, 1, 0, 1]


def _wide_network() -> nn.Module:
    torch.manual_seed(0)
    convolutions = [layer for _ in range(6) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())]
    return nn.Sequential(nn.Conv2d(3, 16, 3), *convolutions, nn.Conv2d(16, 1, 3))


def _engine(network: nn.Module, accumulation: int = 1, layout: torch.memory_format | None = None):
    from mdaug import distributed
    from mdaug.training.batches import BatchPlan
    from mdaug.training.deepspeed_json import deepspeed_config
    from mdaug.training.engine import Engine
    from mdaug.training.options import TrainingConfig

    distributed.init()
    if layout is not None:
        distributed.memory_format = lambda: layout
    ranks = distributed.world_size()
    config = TrainingConfig(Path("d"), Path("o"), lr=LR, mixed_precision="no")
    plan = BatchPlan(2 * accumulation * ranks, 2, ranks, accumulation, 4, num_samples=64, val_every=64, save_every=64)
    return Engine(network, config, deepspeed_config(config, plan, "no"))


def _images(step: int, rank: int) -> torch.Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(100 * step + rank))


def _waits() -> int:
    from deepspeed.accelerator import get_accelerator

    waits = []
    get_accelerator().synchronize = torch.cuda.synchronize = lambda *_: waits.append(1)
    engine = _engine(_wide_network(), accumulation=2)
    for step in range(10):
        for _ in range(2):
            engine.backward(engine(_images(step, 0)).square().mean())
            engine.step(1e-3)
    return len(waits)


def test_no_step_waits_for_the_device():
    assert run_ranks(1, _waits) == [0]


def _overlap(channels_last: bool) -> tuple[list[str], list[Any]]:
    """Return what happened in the backward passes of an optimizer step, and the weights after two."""
    from mdaug import distributed
    from mdaug.training import gradient_buckets

    gradient_buckets.BUCKET_BYTES = 20_000  # two convolutions
    network, happened = _wide_network(), []
    engine = _engine(network, 2, torch.channels_last if channels_last else None)
    network[0].weight.register_post_accumulate_grad_hook(lambda _: happened.append("first layer"))
    all_reduce = torch.distributed.all_reduce

    def recorded(tensor, *arguments, async_op=False, **keywords):
        happened.append("sent" if async_op else "waited")
        return all_reduce(tensor, *arguments, async_op=async_op, **keywords)

    torch.distributed.all_reduce = recorded
    for step in range(2):
        for micro_batch in range(2):
            images = _images(2 * step + micro_batch, distributed.rank())
            engine.backward(engine(images).square().mean())
            engine.step(1e-3)
    return happened[: len(happened) // 2], [parameter.detach().tolist() for parameter in network.parameters()]


@pytest.mark.parametrize("layout", [False, True], ids=["contiguous", "channels_last"])
def test_stage_0_reduces_while_the_backward_pass_runs(layout):
    """Buckets are on their way before the last gradients are there, none in the first of two micro batches."""
    (happened, weights), (_, others) = run_ranks(2, _overlap, layout)
    assert happened == ["first layer", "sent", "sent", "first layer", "sent", "sent"]
    network = _wide_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(2):
        for micro_batch in range(2):
            for rank in range(2):
                (network(_images(2 * step + micro_batch, rank)).square().mean() / 4).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for ours, other, expected in zip(weights, others, network.parameters(), strict=True):
        assert ours == other
        torch.testing.assert_close(torch.tensor(ours), expected.detach(), rtol=1e-4, atol=1e-5)


def _moved(folder: Path, layouts: list[torch.memory_format]) -> list[Any]:
    """Train a step in each layout, through a checkpoint between them; return the weights."""
    network = _wide_network()
    for step, layout in enumerate(layouts):
        network = _wide_network()
        engine = _engine(network, layout=layout)
        if step:
            engine.load(folder / str(step - 1))
        engine.backward(engine(_images(step, 0)).square().mean())
        engine.step(1e-2)
        (folder / str(step)).mkdir()
        for path, write in engine.snapshot(folder / str(step)).items():
            write(path)
    return [parameter.detach().tolist() for parameter in network.parameters()]


def test_moments_of_another_layout_are_laid_out_like_their_weights(tmp_path):
    """A run that moves between a GPU (channels_last) and a CPU; without a change of ranks or stage."""
    plain, last = torch.contiguous_format, torch.channels_last
    moved = []
    for name, layouts in (("stays", [plain, plain]), ("to_cpu", [last, plain]), ("to_gpu", [plain, last])):
        (tmp_path / name).mkdir()
        moved.append(run_ranks(1, _moved, tmp_path / name, layouts)[0])
    for stays, to_cpu, to_gpu in zip(*moved, strict=True):
        for moved_weights in (to_cpu, to_gpu):
            torch.testing.assert_close(torch.tensor(moved_weights), torch.tensor(stays), rtol=1e-3, atol=1e-4)
