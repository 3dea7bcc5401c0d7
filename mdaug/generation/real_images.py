"""Real training images beside the synthetic samples: one mixed set, told apart by `source`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mdaug.generation.plan import Plan
from mdaug.generation.shard import Members, to_png
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.verify import inspect
from shards.writer import write_shard

PREFIX = "real-"  # of the names of shards


def describe(packed: Path, classes: list[str], image_shape: list[int], colormap: str | None) -> dict:
    """Return {"hash", "samples"} of a packed set that can be mixed with samples of a model.

    Raises:
        UserError: it is no packed set, or one of other classes, another image shape or another colour map.
    """
    made = provenance.read(packed, "images")
    dataset = ShardDataset(packed / "train", fields=())
    for what, theirs, ours in (
        ("classes", dataset.classes, classes),
        ("images of [height, width, channels]", dataset.index["image_shape"], image_shape),
        ("levels of the colour map", dataset.index.get("colormap"), colormap),
    ):
        if theirs != ours:
            raise UserError(
                f"{packed} has {what} {theirs}, the model has {ours}; "
                "include the packed set that the model was trained on"
            )
    return {"hash": made["hash"], "samples": len(dataset)}


def require(plan: Plan, packed: Path, folder: Path) -> None:
    """Refuse a packed set that is not the one whose images the plan of `folder` includes."""
    if plan.include_real is None:
        raise UserError(f"the plan of {folder} includes no real images; leave out include_real, or make another set")
    provenance.require_same(
        "real images", packed, provenance.read(packed, "images")["hash"], folder, plan.include_real["hash"]
    )


def shard_name(number: int) -> str:
    """Return the file name of a shard of real images."""
    return f"{PREFIX}{number:06d}.tar"


def num_shards(plan: Plan) -> int:
    """Return the number of shards of real images."""
    return -(-plan.include_real["samples"] // plan.samples_per_shard) if plan.include_real else 0


def keys(plan: Plan, shard: int) -> list[str]:
    """Return the keys of a shard of real images."""
    return [_key(i) for i in _indices(plan, shard)]


def write_shards(plan: Plan, packed: Path, folder: Path) -> None:
    """Copy the training images of a packed set into shards of the plan's folder; those that are whole stay."""
    dataset = ShardDataset(packed / "train", fields=("image", "meta"))
    for shard in range(num_shards(plan)):
        path = folder / shard_name(shard)
        if not inspect(path, keys(plan, shard), image_shape=plan.image_shape).is_whole:
            write_shard(path, _samples(dataset, _indices(plan, shard), bool(plan.sift), plan.condition_names))


def _key(i: int) -> str:
    return f"real_{i:09d}"


def _indices(plan: Plan, shard: int) -> range:
    assert plan.include_real is not None
    start = shard * plan.samples_per_shard
    return range(start, min(start + plan.samples_per_shard, plan.include_real["samples"]))


def _samples(dataset: ShardDataset, indices: range, sifted: bool, conditions: list[str]) -> Iterator[Members]:
    """Yield the members of real images, with the keys of the synthetic ones: readers want every sample alike."""
    for i in indices:
        sample = dataset[i]
        meta = {"class": dataset.classes[sample["label"]], "seed": None, "source": "real"}
        for name in conditions:
            value = sample["meta"].get(name)
            meta[f"condition_{name}"] = None if value in ("", None) else float(value)
        if sifted:
            meta |= {"candidate": None, "score": None, "within_limits": None}
        meta |= {
            "group": str(sample["meta"].get("group", "")),
            "original": str(sample["meta"].get("source", sample["key"])),
        }
        text = json.dumps(meta, ensure_ascii=False)
        members = {
            "png": to_png(sample["image"], dataset.index.get("colormap")),
            "cls": str(sample["label"]).encode(),
            "json": text.encode(),
        }
        yield _key(i), members
