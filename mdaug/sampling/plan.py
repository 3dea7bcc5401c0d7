"""What a set of synthetic samples is, fixed before the first is made: `plan.json`.

Sample i, its label, seed and bytes are functions of (plan, i) alone: not of the number of workers,
their order, or interruptions.
"""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cached_property
from pathlib import Path

import numpy as np

from shards.errors import UserError
from shards.provenance import write_text

FILE_NAME = "plan.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole description of a synthetic set.

    Attributes:
        counts: class name -> number of samples, for every class of the model in its order.
        seed: base seed.
        pipeline: content hash of the pipeline.
        scheduler_type: name of the sampler.
        num_inference_steps: its steps.
        guidance_scale: classifier-free guidance.
        mixed_precision: "no", "bf16" or "fp16".
        batch_size: samples denoised together; batches never cross a shard.
        samples_per_shard: samples of every shard but the last.
        device: "cpu" or "cuda": their arithmetic differs.
        cpu_threads: threads of a worker on a CPU; sums depend on it.
    """

    counts: dict[str, int]
    seed: int
    pipeline: str
    scheduler_type: str
    num_inference_steps: int
    guidance_scale: float
    mixed_precision: str
    batch_size: int
    samples_per_shard: int
    device: str
    cpu_threads: int

    @property
    def total(self) -> int:
        """Number of samples."""
        return sum(self.counts.values())

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.total // self.samples_per_shard)

    def shard_name(self, shard: int) -> str:
        """Return the file name of a shard."""
        return f"{shard:06d}.tar"

    def key(self, sample: int) -> str:
        """Return the key of a sample index."""
        return f"{sample:09d}"

    def batches(self, shard: int) -> list[np.ndarray]:
        """Return the sample indices of each batch of a shard."""
        start = shard * self.samples_per_shard
        stop = min(start + self.samples_per_shard, self.total)
        return [np.arange(i, min(i + self.batch_size, stop)) for i in range(start, stop, self.batch_size)]

    def labels(self, samples: np.ndarray) -> np.ndarray:
        """Return the labels of sample indices.

        A stride coprime to the total visits every place of the list "all of class 0, all of class 1, ..."
        once. Near the golden section it spreads the classes so that each stretch of samples, and with
        it each shard, holds them in about the proportion of the whole.
        """
        places = samples.astype(np.int64) * self._stride % self.total
        return np.searchsorted(np.cumsum(list(self.counts.values())), places, side="right")

    def seeds(self, samples: np.ndarray) -> np.ndarray:
        """Return the seeds of the samples' `torch.Generator`s, uint32 as int64.

        torch's CPU generator uses 32 bits of its seed. Independent draws from 2^32 would give a hundred
        pairs of equal samples in a million, so the seeds of a plan are consecutive from a hashed start.
        """
        start = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        return (start + samples.astype(np.int64)) % 2**32

    @cached_property
    def _stride(self) -> int:
        stride = max(1, round(self.total * (math.sqrt(5) - 1) / 2))
        while math.gcd(stride, self.total) != 1:
            stride += 1
        return stride


def even_counts(num_samples: int, classes: list[str], known: list[str]) -> dict[str, int]:
    """Return counts over the `known` classes: num_samples spread over `classes`, the remainder to the first ones."""
    each, remainder = divmod(num_samples, len(classes))
    counts = dict.fromkeys(known, 0)
    for place, name in enumerate(sorted(classes, key=known.index)):
        counts[name] = each + (place < remainder)
    return counts


def claim_folder(folder: Path, plan: Plan) -> None:
    """Write `plan.json` into an empty or new folder, or accept the folder of the same plan.

    Raises:
        UserError: the folder holds another plan (naming what differs) or other files; nothing is touched.
    """
    path = folder / FILE_NAME
    text = json.dumps(dataclasses.asdict(plan), indent=1, ensure_ascii=False) + "\n"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(text)
        changes = [f"{name} {there.get(name)} -> {wanted[name]}" for name in wanted if there.get(name) != wanted[name]]
        if changes:
            raise UserError(
                f"{folder} holds samples of another plan ({'; '.join(changes)}); choose another --output_dir, "
                "or the settings of that plan to go on with it"
            )
        return
    if folder.is_dir() and any(not entry.name.startswith(".") and entry.name != "logs" for entry in folder.iterdir()):
        raise UserError(f"{folder} holds other files and no {FILE_NAME}; choose an empty or new --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
