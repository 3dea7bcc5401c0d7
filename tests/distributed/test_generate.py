import os
import time
from pathlib import Path

import numpy as np
import pytest

from shards.validation import WORKER, WORKERS
from tests import ranks
from tests.generation import TIMED
from tests.tiny_pipeline import save_tiny

SHARDS = 8


def make(ldm: str, folder: str) -> None:
    from mdaug.generation.generate import run as generate
    from mdaug.generation.options import GenerateConfig

    generate(
        GenerateConfig(
            ldm_path=Path(ldm),
            output_dir=Path(folder),
            num_samples=60,
            num_inference_steps=10,
            batch_size=4,
            samples_per_shard=8,
            scheduler_type="ddpm",
        )
    )


def work(ldm: str, folder: str, worker: int, workers: int) -> None:
    os.environ.update({WORKER: str(worker), WORKERS: str(workers)})
    make(ldm, folder)


def files(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.iterdir() if path.is_file() and path.name not in TIMED and path.name[0] != ".")
    return {path.name: path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def ldm(tmp_path_factory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("ldm")))


@pytest.fixture(scope="module")
def whole(ldm, tmp_path_factory) -> dict[str, bytes]:
    """What one worker writes that nobody interrupts."""
    folder = tmp_path_factory.mktemp("one")
    ranks.run_ranks(1, make, ldm, str(folder))
    found = files(folder)
    assert sum(name.endswith(".tar") for name in found) == SHARDS
    return found


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_workers_of_any_number_write_the_bytes_of_one(ldm, whole, workers, tmp_path):
    """SIGKILL at seeded random moments after a new shard, one worker or all of them; then the same command again."""
    random = np.random.default_rng(workers)
    kills = 0
    for _ in range(2):
        processes = [
            ranks._CONTEXT.Process(target=work, args=(ldm, str(tmp_path), worker, workers)) for worker in range(workers)
        ]
        for process in random.permutation(processes):
            process.start()
        before, deadline = len(list(tmp_path.glob("*.json"))), time.monotonic() + 180
        alive = True
        while len(list(tmp_path.glob("*.json"))) <= before and alive and time.monotonic() < deadline:
            alive = any(process.is_alive() for process in processes)
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))
        for process in random.permutation(processes)[: random.integers(1, workers + 1)]:
            kills += process.is_alive()
            process.kill()
        for process in processes:
            process.join()
    assert kills
    ranks.run_ranks(workers, make, ldm, str(tmp_path))
    assert files(tmp_path) == whole
