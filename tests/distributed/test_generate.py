import time
from pathlib import Path

import numpy as np

from tests import ranks
from tests.tiny_pipeline import save_tiny


def make(ldm: str, folder: str) -> None:
    from mdaug.sampling.generate import GenerateConfig, generate

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


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "provenance.json"
    }


def test_two_workers_and_killed_workers_write_the_bytes_of_one(tmp_path):
    ldm = str(save_tiny(tmp_path / "ldm"))
    ranks.run_ranks(1, make, ldm, str(tmp_path / "one"))
    whole = files(tmp_path / "one")
    assert sum(name.endswith(".tar") for name in whole) == 8
    ranks.run_ranks(2, make, ldm, str(tmp_path / "two"))
    assert files(tmp_path / "two") == whole

    killed = tmp_path / "killed"
    random = np.random.default_rng(0)
    for _ in range(3):
        process = ranks._CONTEXT.Process(target=make, args=(ldm, str(killed)))
        process.start()
        shards = len(list(killed.glob("*.json")))
        deadline = time.monotonic() + 60
        while len(list(killed.glob("*.json"))) <= shards and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.join()
    ranks.run_ranks(2, make, ldm, str(killed))
    assert files(killed) == whole
