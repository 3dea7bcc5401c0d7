"""A validation has a fixed number of draws, spread over the set; ranks ask each other to stop every few seconds."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mdaug import distributed
from mdaug.training import preemption
from mdaug.training.ldm_task import VALIDATION_DRAWS, _validation_sample
from mdaug.training.loaders import VALIDATION_SAMPLES, Stopped, validation_batches
from mdaug.training.preemption import StopFlag


@pytest.mark.parametrize("images", [7, 1000, 8192, 50_000])
def test_draws_are_few_and_lie_evenly_over_the_images(images):
    draws = min(VALIDATION_DRAWS * images, VALIDATION_SAMPLES)
    diffuse = SimpleNamespace(validation=lambda image, position: (image, position))
    seen = [_validation_sample(range(images), diffuse, draws, position) for position in range(draws)]
    assert [position for _, position in seen] == list(range(draws))  # noise and timestep follow from it
    per_part = Counter(min(9, 10 * image // images) for image, _ in seen)
    if images >= 1000:
        assert max(per_part.values()) < 1.3 * min(per_part.values())
    else:
        assert Counter(image for image, _ in seen) == dict.fromkeys(range(images), VALIDATION_DRAWS)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_loading_processes_and_end_where_they_are_asked(workers):
    config = SimpleNamespace(batch_size=4, num_workers=workers)
    asked = []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) > 2

    made = validation_batches(lambda i: {"x": torch.tensor(i)}, 130, config, stopped)  # type: ignore[arg-type]
    found = [next(made)[0]["x"].tolist() for _ in range(32)]  # two times sixteen
    with pytest.raises(Stopped):
        next(made)
    whole = list(validation_batches(lambda i: {"x": torch.tensor(i)}, 130, config, lambda: False))  # type: ignore[arg-type]
    assert [batch["x"].tolist() for batch, _ in whole[:32]] == found
    assert (whole[-1][0]["x"].tolist(), whole[-1][1].tolist()) == ([128, 129, 129, 129], [1, 1, 0, 0])


def test_ranks_ask_each_other_more_often_where_steps_are_long(monkeypatch):
    clock = iter(range(0, 10_000, 2))  # a step takes two seconds
    monkeypatch.setattr(preemption.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = []
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda tensor: asked.append(tensor) or 2 * tensor)
    flag = StopFlag()
    try:
        for step in range(1, 21):
            assert flag.agreed(step, torch.device("cpu")) is False
        assert len(asked) == 20  # a CPU asks at every step
        assert preemption.ASK_SECONDS * 2 / (2 * 2.0) < preemption.MOST_STEPS
        assert flag._next == 21  # the next of steps that take two of three seconds
    finally:
        flag.close()
