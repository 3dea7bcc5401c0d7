"""The averaged weights follow a closed form, cut over the ranks or whole."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mdaug.training import ema as power
from mdaug.training import sharded_tensors
from mdaug.training.ema import EMA, HALF_LIFE
from shards.errors import UserError


class FakeEngine:
    """Stands for an engine whose master weights are known."""

    def __init__(self, module: nn.Module):
        self.module = module

    def master_shards(self):
        return (sharded_tensors.own_part(parameter.detach()) for parameter in self.module.parameters())


def averaged(ema: EMA) -> dict[str, torch.Tensor]:
    with ema.network() as network:
        return {name: value.clone() for name, value in network.state_dict().items()}


def filled(value: float) -> nn.Module:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(value)
    return network


def test_half_life_is_in_samples_whatever_the_batch():
    for batch in (10, 100):
        ema = EMA(filled(0.0), half_life=1000, warmup=1e9)
        for samples in range(batch, 3001, batch):
            ema.update(FakeEngine(filled(1.0)), samples, batch)
        assert float(averaged(ema)["weight"]) == pytest.approx(1 - 0.5**3, rel=1e-5)


def test_warm_up_forgets_the_initial_weights():
    ema = EMA(nn.Linear(1, 1), half_life=100_000, warmup=0.05)
    assert ema.decay(samples=32, batch=32) < 1e-6
    assert ema.decay(samples=20_000, batch=32) == pytest.approx(0.5 ** (32 / 1000))
    assert ema.decay(samples=10_000_000, batch=32) == pytest.approx(0.5 ** (32 / 100_000))


def test_average_is_fp32_and_apart_from_the_trained_network():
    network = nn.Linear(2, 2).bfloat16()
    ema = EMA(network, half_life=1)
    before = averaged(ema)["weight"]
    assert before.dtype == torch.float32
    network.weight.data.add_(1)
    assert torch.equal(averaged(ema)["weight"], before)


def test_power_profile_weighs_the_weights_as_its_density_does():
    """Weights equal to the time: their average under the density is t (gamma + 1) / (gamma + 2)."""
    ema = EMA(filled(0.0), half_life=1, profiles=[0.1])
    for samples in range(10, 20_001, 10):
        ema.update(FakeEngine(filled(samples)), samples, 10)
    gamma = power.gamma(0.1)
    assert float(ema.averages["0.1"][0]) == pytest.approx(20_000 * (gamma + 1) / (gamma + 2), rel=1e-3)


def test_no_memory_is_held_for_the_network_outside_the_block():
    ema = EMA(nn.Linear(8, 8), half_life=1)
    with ema.network() as network:
        assert network.weight.shape == (8, 8)
    assert network.weight.numel() == 0


@pytest.mark.parametrize("writers", [1, 2, 3, 8])
def test_pieces_of_any_number_of_ranks_come_back_whole_or_cut_otherwise(tmp_path, monkeypatch, writers):
    tensors = {"a/w": torch.randn(5, 7), "a/b": torch.randn(3), "a/s": torch.randn(())}
    monkeypatch.setenv("WORLD_SIZE", str(writers))
    for rank in range(writers):
        monkeypatch.setenv("RANK", str(rank))
        save_file(
            {name: sharded_tensors.local_shard(tensor).clone() for name, tensor in tensors.items()},
            tmp_path / sharded_tensors.file_name(),
        )
    reader = sharded_tensors.Reader(tmp_path)
    assert set(reader.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(reader.read(name, tensor.numel()).view_as(tensor), tensor)
        for readers in (2, 5):
            parts = [reader.read(name, tensor.numel(), rank, readers) for rank in range(readers)]
            assert torch.equal(torch.cat(parts), tensor.flatten())
            assert max(map(len, parts)) == -(-tensor.numel() // readers)
    (tmp_path / sharded_tensors.file_name()).unlink()
    with pytest.raises(UserError, match="incomplete"):
        sharded_tensors.Reader(tmp_path)


@pytest.mark.parametrize(("readers", "opened"), [(4, 1), (2, 2), (8, 1), (1, 4), (3, 2)])
def test_a_rank_opens_the_files_that_hold_its_shards_alone(tmp_path, monkeypatch, readers, opened):
    tensor = torch.randn(24)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        save_file({"a/w": sharded_tensors.local_shard(tensor).clone()}, tmp_path / sharded_tensors.file_name())
    names, original = [], sharded_tensors.safe_open
    monkeypatch.setattr(sharded_tensors, "safe_open", lambda path, kind: names.append(path) or original(path, kind))
    for rank in range(readers):
        names.clear()
        start, stop = sharded_tensors.shard_bounds(24, rank, readers)
        assert torch.equal(sharded_tensors.Reader(tmp_path).read("a/w", 24, rank, readers), tensor[start:stop])
        assert len(names) <= opened


def test_state_of_the_averages_is_restored(tmp_path):
    ema = EMA(nn.Linear(4, 3), half_life=100, profiles=[0.05, 0.1])
    ema.update(FakeEngine(nn.Linear(4, 3)), 10, 10)
    ema.update(FakeEngine(nn.Linear(4, 3)), 20, 10)
    assert {name.partition("/")[0] for name in ema.state()} == {HALF_LIFE, "0.05", "0.1"}
    save_file(ema.state(), tmp_path / sharded_tensors.file_name())
    other = EMA(nn.Linear(4, 3), half_life=100, profiles=[0.05, 0.1])
    other.load(sharded_tensors.Reader(tmp_path))
    for name, value in ema.state().items():
        assert torch.equal(value, other.state()[name])


def test_averages_follow_every_few_steps_where_the_half_life_is_long_and_by_as_much():
    """From eight steps on, which are a sixteenth of the half-life; the average is that of following every step."""
    every, few = (EMA(filled(0.0), half_life=2000, profiles=[0.1]) for _ in range(2))
    averaged_at, updates = 0, []
    for samples in range(10, 60_001, 10):
        engine = FakeEngine(filled(samples / 60_000))
        every.update(engine, samples, 10)
        if few.due(samples, averaged_at, 10):
            few.update(engine, samples, samples - averaged_at)
            updates.append((samples - averaged_at) // 10)
            averaged_at = samples
    assert (updates[:300], set(updates[-100:])) == ([1] * 300, {8})
    for name in (HALF_LIFE, "0.1"):
        assert float(few.averages[name][0]) == pytest.approx(float(every.averages[name][0]), rel=2e-3)


class Copies(TorchDispatchMode):
    """Counts the elements that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__.split(".")[0] in ("clone", "_to_copy", "copy_", "contiguous"):
            self.elements += result.numel()
        return result


@pytest.mark.parametrize(("ranks", "share"), [(1, 0), (4, 1 / 4)])
def test_weights_in_channels_last_are_not_copied_whole(monkeypatch, ranks, share):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    network = nn.Conv2d(32, 64, 3)
    ema = EMA(network, half_life=1)
    trained = nn.Conv2d(32, 64, 3).to(memory_format=torch.channels_last)
    ema.update(FakeEngine(trained), 10, 10)  # lays the averages out once
    with Copies() as copies:
        ema.update(FakeEngine(trained), 20, 10)
    assert copies.elements == pytest.approx(share * network.weight.numel(), rel=0.01, abs=1)
    assert torch.allclose(ema.state()["half-life/weight"], sharded_tensors.local_shard(trained.weight.detach()))
