"""The averaged weights follow a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdaug.training.ema import EMA


class FakeEngine:
    """Stands for an engine whose master weights are known."""

    def __init__(self, module: nn.Module):
        self.module = module

    def full_parameters(self):
        return self.module.named_parameters()


def test_half_life_is_in_samples_whatever_the_batch():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    for batch in (10, 100):
        ema = EMA(network, half_life=1000, warmup=1e9)
        moved = nn.Linear(1, 1, bias=False)
        moved.weight.data.fill_(1.0)
        for samples in range(batch, 3001, batch):
            ema.update(FakeEngine(moved), samples, batch)
        assert float(ema.module.weight) == pytest.approx(1 - 0.5**3, rel=1e-5)


def test_warm_up_forgets_the_initial_weights():
    ema = EMA(nn.Linear(1, 1), half_life=100_000, warmup=0.05)
    assert ema.decay(samples=32, batch=32) < 1e-6
    assert ema.decay(samples=20_000, batch=32) == pytest.approx(0.5 ** (32 / 1000))
    assert ema.decay(samples=10_000_000, batch=32) == pytest.approx(0.5 ** (32 / 100_000))


def test_average_is_fp32_and_apart_from_the_trained_network():
    network = nn.Linear(2, 2).bfloat16()
    ema = EMA(network, half_life=1)
    assert ema.module.weight.dtype == torch.float32
    network.weight.data.add_(1)
    assert not torch.equal(ema.module.weight, network.weight.float())
