"""The samples of `--train_minutes` as a function of measured speed and options."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mdaug.training.batches import BatchPlan
from mdaug.training.length import BACKWARD, lengths
from mdaug.training.options_vqvae import VQVAEConfig


def plan(every: int = 900, batch: int = 8) -> BatchPlan:
    return BatchPlan(
        global_batch=batch, micro_batch=batch, ranks=1, accumulation=1, steps=1, num_samples=900, val_every=every,
        save_every=5 * every,
    )  # fmt: skip


def seconds_of(found: dict[str, int], rate: float, passes: int) -> float:
    """What a run of such a length takes."""
    validations = math.ceil(found["train_samples"] / found["val_samples"])
    return found["train_samples"] / rate + validations * passes / (BACKWARD * rate)


@pytest.mark.parametrize("minutes", [1, 5, 30, 600])
@pytest.mark.parametrize("rate", [3.0, 40.0, 900.0])
@pytest.mark.parametrize("passes", [0, 300, 2500])
def test_a_run_takes_its_minutes_with_its_validations(minutes, rate, passes):
    found = lengths(60 * minutes, rate, passes, plan())
    assert found["train_samples"] % 8 == 0
    slack = 8 / rate + 2 * passes / (BACKWARD * rate)  # a step, and a validation more or less
    assert abs(seconds_of(found, rate, passes) - 60 * minutes) <= slack + 1e-6


def test_intervals_are_those_of_the_options_in_a_long_run_and_a_quarter_of_a_short_one():
    assert lengths(3600, 100, 0, plan(every=900))["val_samples"] == 900
    short = lengths(10, 100, 0, plan(every=900))
    assert (short["train_samples"], short["val_samples"], short["save_samples"]) == (1000, 250, 250)
    slow = lengths(10, 100, 1500, plan(every=900))  # a validation takes 5 s, half of the run
    assert (slow["train_samples"], slow["val_samples"]) == (496, 496)


def test_a_faster_machine_or_more_minutes_never_give_a_shorter_run():
    by_rate = [lengths(300, rate, 300, plan())["train_samples"] for rate in (1, 2, 5, 10, 50, 200)]
    by_minutes = [lengths(60 * minutes, 40, 300, plan())["train_samples"] for minutes in (1, 2, 5, 10, 50)]
    assert by_rate == sorted(by_rate)
    assert by_minutes == sorted(by_minutes)


def test_a_run_of_no_time_has_one_step():
    assert lengths(-5, 10, 300, plan())["train_samples"] == 8


def test_minutes_must_be_more_than_none():
    with pytest.raises(ValueError, match="train_minutes=0 must be greater than 0"):
        VQVAEConfig(data_dir=Path("a"), output_dir=Path("b"), train_minutes=0)
