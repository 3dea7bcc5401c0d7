"""The plan of a synthetic set: everything that decides its bytes, fixed before the first sample is made.

Sample i, its label, seed and bytes are functions of (plan, i) alone: not of the number of workers,
their order, or interruptions. The plan is the identity in the `run.json` of its folder.
"""

from __future__ import annotations

import dataclasses
import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.order import random_at
from shards.output_folder import OutputFolder, claim, read_run, refuse_other

STREAM_CONDITION = 7  # see shards/order.py
COMMAND = "generate"
REAL = "real"  # how the names of shards and keys of real images begin


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole description of a synthetic set.

    Attributes:
        counts: class name -> number of samples, for every class of the model in its order, and auxiliary ones if named.
        seed: base seed.
        pipeline: content hash of the pipeline.
        images: content hash of the images that the pipeline was trained on.
        image_shape: [H, W, C].
        colormap: name of the colour map of images that are its levels, or None.
        scheduler_type: name of the sampler.
        num_inference_steps: its steps.
        guidance_scale: classifier-free guidance.
        guidance_interval: shares [low, high] of the training timesteps within which it acts.
        mixed_precision: "no", "bf16" or "fp16".
        batch_size: samples denoised together; batches never cross a shard.
        samples_per_shard: samples of every shard but the last.
        device: "cpu" or "cuda": their arithmetic differs.
        gpu: model of the GPU and version of torch, whose arithmetic differs likewise; None for a CPU.
        cpu_threads: threads of a worker on a CPU; sums depend on it.
        compile: whether torch.compile runs the U-Net.
        floor: most frequent colour of the training images, or None; it tells the colour map of pictures in colour.
        output_format: "shards"; "folder" or "npy" to have the samples as files too.
        dynamic_range_db: dB between the floor and the top of the colour scale, for "npy".
        include_real: {"hash", "samples"} of the packed set whose training images are mixed in, or None.
        sift: settings of the sifter, or None.
        redraw: {"hash", "classes": name -> images, "redraw_as", "strengths"} of the packed set whose training images
            are redrawn, or None where samples begin with noise.
        conditions: {"fixed": name -> value, "values": class -> joint values of real training images}, or None.
    """

    counts: dict[str, int]
    seed: int
    pipeline: str
    images: str
    image_shape: list[int]
    scheduler_type: str
    num_inference_steps: int
    guidance_scale: float
    mixed_precision: str
    batch_size: int
    samples_per_shard: int
    device: str
    cpu_threads: int
    guidance_interval: list[float] = dataclasses.field(default_factory=lambda: [0.0, 1.0])
    compile: bool = False
    colormap: str | None = None
    floor: list[int] | None = None
    output_format: str = "shards"
    dynamic_range_db: float = 40.0
    include_real: dict | None = None
    sift: dict | None = None
    conditions: dict | None = None
    redraw: dict | None = None
    gpu: str | None = None

    @property
    def total(self) -> int:
        """Number of samples."""
        return sum(self.counts.values())

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.total // self.samples_per_shard)

    @property
    def made_from(self) -> dict[str, str | None]:
        """Role -> content hash of what the set is made from; None for what has no part in it."""
        real = self.include_real["hash"] if self.include_real else None
        sources = self.redraw["hash"] if self.redraw else None
        return {"pipeline": self.pipeline, "images": self.images, "real": real, "sources": sources}

    def shard_name(self, shard: int) -> str:
        """Return the file name of a shard."""
        return f"{shard:06d}.tar"

    def key(self, sample: int) -> str:
        """Return the key of a sample index."""
        return f"{sample:09d}"

    def samples(self, shard: int) -> np.ndarray:
        """Return the sample indices of a shard."""
        start = shard * self.samples_per_shard
        return np.arange(start, min(start + self.samples_per_shard, self.total))

    def keys_and_labels(self, shard: int) -> tuple[list[str], list[int]]:
        """Return the keys and labels of the samples of a shard."""
        samples = self.samples(shard)
        return [self.key(sample) for sample in samples.tolist()], self.labels(samples).tolist()

    def class_names(self, samples: np.ndarray) -> list[str]:
        """Return the classes of sample indices by name: the model may know more classes than are made."""
        classes = list(self.counts)
        return [classes[label] for label in self.labels(samples).tolist()]

    @property
    def num_real_shards(self) -> int:
        """Number of shards of real images, which stand beside the synthetic ones."""
        return -(-self.include_real["samples"] // self.samples_per_shard) if self.include_real else 0

    def real_shard_name(self, shard: int) -> str:
        """Return the file name of a shard of real images."""
        return f"{REAL}-{shard:06d}.tar"

    def real_key(self, image: int) -> str:
        """Return the key of the real training image with an index."""
        return f"{REAL}_{image:09d}"

    def real_images(self, shard: int) -> range:
        """Return the indices of the real training images in a shard of them."""
        assert self.include_real is not None
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, self.include_real["samples"]))

    def labels(self, samples: np.ndarray) -> np.ndarray:
        """Return the labels of sample indices.

        A stride coprime to the total visits every place of the list "all of class 0, all of class 1, ..."
        once. Near the golden section it spreads the classes so that each stretch of samples, and with
        it each shard, holds them in about the proportion of the whole.
        """
        places = samples.astype(np.int64) * self._stride % self.total
        return np.searchsorted(np.cumsum(list(self.counts.values())), places, side="right")

    def places_in_class(self, samples: np.ndarray) -> np.ndarray:
        """Return a number for each sample index that no other of its class has, from 0 to the class's count - 1."""
        places = samples.astype(np.int64) * self._stride % self.total
        counts = np.array(list(self.counts.values()))
        return places - (np.cumsum(counts) - counts)[self.labels(samples)]

    def seeds(self, samples: np.ndarray, candidate: int = 0) -> np.ndarray:
        """Return the seeds of the samples' `torch.Generator`s, uint32 as int64.

        torch's CPU generator uses 32 bits of its seed. Independent draws from 2^32 would give a hundred
        pairs of equal samples in a million, so the seeds of a plan are consecutive from a hashed start:
        first those of every sample, then those of every sample's second candidate, and so on.
        """
        start = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        return (start + candidate * self.total + samples.astype(np.int64)) % 2**32

    @property
    def condition_names(self) -> list[str]:
        """The continuous conditions of the model."""
        return list(next(iter(self.conditions["values"].values()))[0]) if self.conditions else []

    def conditions_of(self, sample: int) -> dict[str, float | None]:
        """Return the conditions of a sample index: those of a real training image of its class, but for fixed ones.

        A joint draw keeps what belongs together, such as the speed and the aspect of one recording.
        """
        if self.conditions is None:
            return {}
        rows = self.conditions["values"][list(self.counts)[int(self.labels(np.array([sample]))[0])]]
        return rows[int(random_at(self.seed, STREAM_CONDITION, sample).integers(len(rows)))] | self.conditions["fixed"]

    @cached_property
    def _stride(self) -> int:
        stride = max(1, round(self.total * (math.sqrt(5) - 1) / 2))
        while math.gcd(stride, self.total) != 1:
            stride += 1
        return stride


def claim_folder(folder: Path, plan: Plan) -> OutputFolder:
    """Make a folder that of a plan, or continue there; any number of workers may do so at once.

    Raises:
        UserError: the folder belongs to another plan (naming what differs) or holds other files; nothing is touched.
    """
    return claim(folder, COMMAND, dataclasses.asdict(plan), plan.made_from, together=True)


def refuse_other_folder(folder: Path, plan: Plan | None) -> None:
    """Raise UserError where `claim_folder` would; without a plan, only for what is not the output of generate."""
    identity: dict[str, Any] = dataclasses.asdict(plan) if plan else {}
    refuse_other(folder, COMMAND, identity, plan.made_from if plan else None)


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of a folder, or None where generate has not claimed it.

    Raises:
        UserError: the plan of another version of mdaug.
    """
    saved = read_run(folder)
    if saved is None or saved["command"] != COMMAND:
        return None
    try:
        return Plan(**saved["identity"])
    except TypeError as error:
        raise UserError(
            f"{folder} holds a plan of another version of mdaug ({error}); choose another --output_dir"
        ) from None


def finished_samples(plan: Plan, folder: Path) -> int:
    """Return the number of synthetic samples in finished shards, by the names of their sidecars alone."""
    sidecars = {name.removesuffix(".json") for name in os.listdir(folder) if name.endswith(".json")}
    shards = range(plan.num_shards)
    return sum(len(plan.samples(shard)) for shard in shards if plan.shard_name(shard).removesuffix(".tar") in sidecars)
