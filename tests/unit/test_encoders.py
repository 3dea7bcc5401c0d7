"""PNGs of generated images: written fast, by as many threads as there are cores for this process."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image

from mdaug.generation import worker
from mdaug.generation.shard import to_png


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_those_of_level_1_and_lose_nothing(channels):
    rng = np.random.default_rng(0)
    image = np.clip(np.linspace(0, 255, 64)[:, None, None] + rng.normal(0, 20, (64, 64, channels)), 0, 255)
    image = image.astype(np.uint8)
    levels = {}
    for level in (1, 6):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, format="PNG", compress_level=level)
        levels[level] = file.getvalue()
    assert to_png(image) == levels[1] != levels[6]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png(image)))), image.squeeze())


@pytest.mark.parametrize(("cores", "processes", "threads"), [(2, 1, 2), (16, 1, 8), (16, 4, 3), (64, 8, 7), (4, 8, 2)])
def test_threads_follow_the_cores_of_the_process(monkeypatch, cores, processes, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert worker.encoders() == threads
