"""The order of the samples: a function of (seed, position), the same for any number of ranks."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest

from shards.dataset import ShardDataset
from shards.order import STREAM_ORDER, EpochOrder, PositionDataset, PositionSampler, random_at

from .shards_helpers import shard_folder


def batches(
    world_size: int, micro_batch: int, steps: tuple[int, int] = (0, 6), global_batch: int = 8
) -> list[list[int]]:
    """Return the positions of each step, all ranks together, in the order of the micro batches."""
    ranks = [
        list(
            PositionSampler(
                global_batch=global_batch,
                micro_batch=micro_batch,
                rank=rank,
                world_size=world_size,
                first_step=steps[0],
                last_step=steps[1],
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(own) for own in ranks}) == 1
    stream = [position for turn in zip(*ranks, strict=True) for batch in turn for position in batch]
    return [stream[i : i + global_batch] for i in range(0, len(stream), global_batch)]


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2)])
def test_any_number_of_ranks_walks_the_same_positions(world_size, micro_batch):
    assert batches(world_size, micro_batch) == [list(range(8 * step, 8 * step + 8)) for step in range(6)]


def test_a_run_that_stopped_continues_where_another_number_of_ranks_left():
    assert batches(1, 8, (0, 2)) + batches(4, 1, (2, 5)) + batches(2, 4, (5, 6)) == batches(1, 8)


@pytest.mark.parametrize("samples", [1, 7, 100])
def test_every_epoch_is_another_permutation_of_all_samples(samples):
    order = EpochOrder(samples, seed=3)
    epochs = [[order.index(epoch * samples + i) for i in range(samples)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    if samples == 100:
        assert all(first != second for first, second in itertools.combinations(epochs, 2))


def test_the_order_depends_on_position_and_seed_alone():
    forward, backward, other = EpochOrder(50, 1), EpochOrder(50, 1), EpochOrder(50, 2)
    there = [forward.index(position) for position in range(200)]
    back = [backward.index(position) for position in reversed(range(200))]
    assert there == back[::-1]
    assert there != [other.index(position) for position in range(200)]


def test_what_a_position_draws_is_its_own():
    draws = {position: random_at(0, STREAM_ORDER, position).normal(size=4) for position in (0, 1, 2, 2**40)}
    assert np.array_equal(draws[1], random_at(0, STREAM_ORDER, 1).normal(size=4))
    assert len({float(draw[0]) for draw in draws.values()}) == 4
    # neighbouring positions use neighbouring counters: their draws must not overlap however many are taken
    first, second = random_at(0, STREAM_ORDER, 5).normal(size=5000), random_at(0, STREAM_ORDER, 6).normal(size=5000)
    assert not np.intersect1d(first, second).size


def test_every_stream_has_a_number_of_its_own_for_ever():
    """A stream that shared or changed its number would change what a seed means."""
    numbers = {}
    root = Path(__file__).parents[2]
    for path in [path for package in ("shards", "mdaug", "launch") for path in (root / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign):
                targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
                names = [target.id for target in targets if isinstance(target, ast.Name)]
                if names and names[0].startswith("STREAM_"):
                    values = ast.literal_eval(node.value)
                    assert not numbers.keys() & names
                    numbers |= zip(names, values if isinstance(values, tuple) else [values], strict=True)
    assert numbers == {
        "STREAM_ORDER": 0,
        "STREAM_AUGMENT": 1,
        "STREAM_NOISE": 2,
        "STREAM_TIMESTEP": 3,
        "STREAM_LABEL_DROP": 4,
        "STREAM_CODEBOOK": 5,
        "STREAM_CONDITION_DROP": 6,
        "STREAM_CONDITION": 7,
        "STREAM_AUXILIARY": 8,
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_yields_the_stream_of_positions_whatever_its_workers(tmp_path, workers):
    from torch.utils.data import DataLoader

    dataset = ShardDataset(shard_folder(tmp_path), ("array",))
    order = EpochOrder(len(dataset), seed=5)
    positions = PositionDataset(dataset, order, lambda sample, position: (position, int(sample["array"][0, 0, 0])))
    sampler = PositionSampler(global_batch=4, micro_batch=2, rank=0, world_size=1, first_step=1, last_step=6)
    loader = DataLoader(positions, batch_sampler=sampler, num_workers=workers, collate_fn=list)
    seen = [item for batch in loader for item in batch]
    assert seen == [(position, order.index(position)) for position in range(4, 24)]
