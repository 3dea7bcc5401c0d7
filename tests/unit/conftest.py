"""What several test files here start from: a tiny pipeline, a tiny packed set, and no ranks in the environment."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import atomic, provenance
from shards.index import content_hash, write_index
from shards.validation import WORKER, WORKERS
from shards.writer import write_shard
from tests.tiny_pipeline import CLASSES, save_tiny


@pytest.fixture(scope="module")
def ldm(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("ldm") / "best").parent


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", WORKER, WORKERS, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """Real images of the classes of the tiny pipeline: 6, 3 and 1 for training."""
    folder = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(0)
    for split, numbers in (("train", (6, 3, 1)), ("val", (1, 1, 1))):
        samples = []
        for label, number in enumerate(numbers):
            for i in range(number):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
                meta = {"class": CLASSES[label], "group": f"g{i}", "source": f"{CLASSES[label]}/{i}.png"}
                members = {"png": file.getvalue(), "cls": str(label).encode(), "json": json.dumps(meta).encode()}
                samples.append((f"{split}_{label}_{i}", members))
        write_shard(folder / split / "000000.tar", samples)
        write_index(folder / split, CLASSES, image_shape=[16, 16, 3])
    atomic.write_text(folder / "classes.json", json.dumps(CLASSES))
    provenance.write(folder, kind="images", content_hash=content_hash(folder), made_from={}, config={})
    return folder


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """Put commands on the PATH that print a text and end with a status."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def say(command: str, text: str, status: int = 0) -> None:
        path = tmp_path / command
        path.write_text(f"#!/bin/sh\necho '{text}' >&{2 if status else 1}\nexit {status}\n")
        path.chmod(0o755)

    return say
