"""The order of the samples: a function of (seed, position), the same for any number of ranks."""

from __future__ import annotations

import ast
import itertools
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mdaug.training import checkpoint
from mdaug.training.checkpoint import TrainingState
from mdaug.training.latents import CopyOrder
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.order import (
    STREAM_AUXILIARY,
    STREAM_ORDER,
    WINDOW,
    BalancedOrder,
    EpochOrder,
    Order,
    PositionDataset,
    PositionSampler,
    SharedOrder,
    epoch_length,
    random_at,
)

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
        "STREAM_DROPOUT": 9,
        "STREAM_CALLS": 10,
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


def sizes(shards: int, seed: int = 0) -> np.ndarray:
    """Return counts of shards of different size."""
    return np.random.default_rng(seed).integers(1, 20, shards)


def large_orders() -> dict[str, Order]:
    """Return an order of each kind over more shards than a window has."""
    counts, others = sizes(400), sizes(300, 1)
    labels = np.random.default_rng(2).integers(0, 5, counts.sum()).astype(np.uint16)
    own, other = EpochOrder(counts, 3), EpochOrder(others, 3, STREAM_AUXILIARY)
    shared = SharedOrder(own, other, own.num_samples, 0.3)
    sets = [(own.num_samples, 2), (other.num_samples, 0)]
    return {
        "epoch": EpochOrder(counts, 3),
        "balanced": BalancedOrder(labels, 3, counts=counts),
        "shared": shared,
        "copies": CopyOrder(shared, sets, 3, 0.5),
    }


@pytest.mark.parametrize("shards", [1, WINDOW, WINDOW + 1, 700])
def test_every_epoch_in_windows_is_another_permutation_with_few_shards_at_a_time(shards):
    counts = sizes(shards)
    order, of = EpochOrder(counts, seed=3), np.repeat(np.arange(shards), counts)
    n = order.num_samples
    epochs = np.array([order.index(position) for position in range(3 * n)]).reshape(3, n)
    assert all(np.array_equal(np.sort(epoch), np.arange(n)) for epoch in epochs)
    assert shards == 1 or not any(np.array_equal(a, b) for a, b in itertools.combinations(epochs, 2))
    together = [set(of[epoch[: n * WINDOW // max(WINDOW, shards) // 2]]) for epoch in epochs]
    assert all(len(open_shards) <= WINDOW for open_shards in together)
    assert shards < 2 * WINDOW or len(together[0] & together[1]) < WINDOW / 2  # each epoch joins others


def test_the_order_of_a_set_of_few_shards_is_that_of_its_samples_as_ever():
    counts = sizes(WINDOW)
    whole, plain = EpochOrder(counts, 5), EpochOrder(int(counts.sum()), 5)
    expected = random_at(5, STREAM_ORDER, 1).permutation(plain.num_samples)
    shown = [whole.index(plain.num_samples + i) for i in range(plain.num_samples)]
    assert shown == expected.tolist() == [plain.index(plain.num_samples + i) for i in range(plain.num_samples)]
    assert (whole.version, plain.version, EpochOrder(sizes(WINDOW + 1), 5).version) == (1, 1, 2)


@pytest.mark.parametrize("kind", ["epoch", "balanced", "shared", "copies"])
def test_positions_in_windows_are_the_same_however_they_are_come_by(kind):
    order, again = large_orders()[kind], large_orders()[kind]
    positions = np.random.default_rng(0).permutation(3 * order.num_samples)[:2000]
    there = {int(p): order.index(int(p)) for p in sorted(positions)}
    assert {int(p): again.index(int(p)) for p in positions} == there


@pytest.mark.parametrize("kind", ["epoch", "balanced", "shared", "copies"])
def test_batches_in_windows_hold_the_same_positions_on_any_ranks_and_each_once(kind):
    def dealt(world_size: int, micro_batch: int) -> list[list[int]]:
        ranks = [
            [
                position
                for batch in PositionSampler(
                    global_batch=64,
                    micro_batch=micro_batch,
                    rank=rank,
                    world_size=world_size,
                    first_step=30,
                    last_step=90,
                    order=large_orders()[kind],
                )
                for position in batch
            ]
            for rank in range(world_size)
        ]
        assert len({len(own) for own in ranks}) == 1
        share = 64 // world_size
        return [sorted(p for own in ranks for p in own[step * share : (step + 1) * share]) for step in range(60)]

    expected = [list(range(64 * step, 64 * step + 64)) for step in range(30, 90)]
    assert all(dealt(*how) == expected for how in [(1, 64), (1, 16), (2, 16), (4, 8)])


def test_a_rank_opens_few_shards_for_its_part_of_a_large_batch():
    counts = np.full(1000, 64)
    order = EpochOrder(counts, 0)
    opened = []
    for rank in (0, 17, 63):
        sampler = PositionSampler(
            global_batch=4096, micro_batch=64, rank=rank, world_size=64, first_step=3, last_step=9, order=order
        )
        opened += [len({order.index(position) // 64 for position in batch}) for batch in sampler]
    assert max(opened) <= 10  # of 64 samples; their own window has 128 shards


def test_samples_of_a_window_meet_in_any_order():
    """Chi-square tests: each sample is equally likely at each place, and so is each pair of neighbours."""
    counts, epochs = np.full(2 * WINDOW, 2), 400
    order = EpochOrder(counts, 1)
    n = order.num_samples
    shown = np.array([[order.index(e * n + i) for i in range(n)] for e in range(epochs)])
    place = np.zeros((16, 16))
    np.add.at(place, (shown * 16 // n, np.broadcast_to(np.arange(n) * 16 // n, shown.shape)), 1)
    expected = epochs * n / 256
    assert ((place - expected) ** 2 / expected).sum() < 225 + 5 * np.sqrt(2 * 225)  # 225 degrees of freedom
    steps = (np.diff(shown, axis=1) % n).ravel()
    found = np.bincount(steps * 16 // n, minlength=16)
    # The two samples of a shard meet twice as often as in one permutation of all, which the first bin would show.
    assert (np.abs(found - found.mean()) < 5 * np.sqrt(found.mean()) + 0.02 * found.mean()).all()


@pytest.mark.parametrize(("counts", "refused"), [(np.full(WINDOW, 3), False), (np.full(WINDOW + 1, 3), True)])
def test_a_checkpoint_of_the_old_order_is_refused_where_the_order_is_another_now(tmp_path, counts, refused):
    record = {**asdict(TrainingState(step=3, samples=24, global_batch=8))}
    del record["order"]  # as an older version wrote it
    (tmp_path / checkpoint.STATE_FILE).write_text(json.dumps(record))
    state = TrainingState(global_batch=8, order=EpochOrder(counts, 0).version)
    with pytest.raises(UserError if refused else AttributeError, match="order of samples" if refused else "None"):
        checkpoint.load(tmp_path, None, state)  # type: ignore[arg-type]


def test_a_process_holds_the_permutation_of_one_window_only():
    import tracemalloc

    counts = np.full(10_000, 1000)  # 1e7 samples
    tracemalloc.start()
    order = EpochOrder(counts, 0)
    for epoch in range(3):
        order.index(epoch * order.num_samples + 4_567_890)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6  # a permutation of 1e7 samples takes 80 MB


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1, 0.3, 0.9, 1e-3])
def test_the_share_is_exact_at_every_position_and_an_epoch_shows_each_own_sample_once(share):
    own, others = EpochOrder(37, 1), EpochOrder(11, 1)
    order = SharedOrder(own, others, 37, share)
    shown = [order.index(position) for position in range(3000)]
    counted = np.cumsum([index >= 37 for index in shown])
    assert all(abs(counted[p] - (p + 1) * share) < 1 for p in range(3000))
    if share == 0.25:  # batches of any size that the share divides hold exactly that many
        assert set(np.add.reduceat([index >= 37 for index in shown], range(0, 3000, 20))) == {5}
    epoch = [index for index in shown[: order.num_samples] if index < 37]
    assert order.num_samples == epoch_length(37, share)
    assert -1e-9 <= order.num_samples - 37 / (1 - share) < 1 + 1e-9
    assert sorted(epoch[:37]) == list(range(37))
    auxiliary_shown = [index - 37 for index in shown if index >= 37]
    assert auxiliary_shown == [others.index(position) for position in range(len(auxiliary_shown))]


def test_a_class_of_5_and_one_of_300_are_drawn_equally_often_and_so_are_the_images_of_each():
    labels = np.array([4] * 300 + [0] * 5 + [7] * 40)
    order = BalancedOrder(labels, seed=3)
    seen: Counter[int] = Counter()
    for position in range(3000):
        seen[order.index(position)] += 1
        if position % 7 == 0:
            by_class = [sum(n for i, n in seen.items() if labels[i] == label) for label in (0, 4, 7)]
            assert max(by_class) - min(by_class) <= 1
            for label in (0, 4, 7):
                counts = [seen[i] for i in np.flatnonzero(labels == label).tolist()]
                assert max(counts) - min(counts) <= 1
    back = BalancedOrder(labels, seed=3)
    forward = [order.index(position) for position in range(500)]
    assert [back.index(position) for position in reversed(range(500))] == forward[::-1]
    assert forward != [BalancedOrder(labels, seed=4).index(position) for position in range(500)]
